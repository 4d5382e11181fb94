"""Federated averaging in one file whose jobs carry a weight each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import Strategy
from fedloom.core.records import MODEL, Arrays, Exchange, Record, RoundContext


class Config(PluginSettings):
    """Weights by heart."""

    weights: tuple[float, ...]
    """One for each client."""


@dataclass(frozen=True)
class _State:
    model: Arrays


class Weighted(Strategy[_State, RunningMean]):
    State = _State

    def __init__(self, config: Config) -> None:
        self._weights = config.weights

    def init(self, model: Record) -> _State:
        return _State(model.groups[MODEL])

    def plan(self, state: _State, context: RoundContext) -> Exchange:
        jobs = tuple(replace(job, weight=self._weights[job.client]) for job in context.jobs())
        return Exchange(jobs=jobs, inputs={MODEL: Record({MODEL: state.model})})

    def finish(self, state: _State, total: RunningMean, context: RoundContext) -> _State:
        return _State(total.value()[MODEL])

    def arrays(self, state: _State) -> Arrays:
        return state.model


def build_strategy(config: Config, experiment: Experiment) -> Weighted:
    return Weighted(config)
