"""Federated averaging, the server half. There is no client half: clients only train."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.protocols import Strategy
from fedloom.core.records import MODEL, Arrays, Exchange, Record, RoundContext
from fedloom.strategies.fedavg.config import Config


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """The global model w_t: arrays by name, in the workload's shapes and dtypes."""

    model: Arrays


class FedAvg(Strategy[GlobalModel, RunningMean]):
    """w_{t+1} = sum_k (n_k / n) w_k over the round's cohort.

    McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", Algorithm 1.
    """

    State = GlobalModel

    def init(self, model: Record) -> GlobalModel:
        return GlobalModel(model.groups[MODEL])

    def plan(self, state: GlobalModel, context: RoundContext) -> Exchange | None:
        return Exchange(jobs=context.jobs(), inputs={MODEL: Record({MODEL: state.model})})

    def finish(self, state: GlobalModel, total: RunningMean, context: RoundContext) -> GlobalModel:
        return replace(state, model=total.value()[MODEL])

    def arrays(self, state: GlobalModel) -> Arrays:
        return state.model


def build_strategy(config: Config, experiment: Experiment) -> FedAvg:
    """Return the strategy a `Config` describes."""
    return FedAvg()
