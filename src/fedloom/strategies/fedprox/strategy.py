"""FedProx, the server half: federated averaging's round, with mu in the jobs. The client half is `rule.py`."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.accumulators import Accumulator
from fedloom.core.config import Experiment
from fedloom.core.records import Arrays, Exchange, Record, RoundContext
from fedloom.strategies.fedavg import strategy as fedavg
from fedloom.strategies.fedprox.config import Config


class FedProx:
    """Clients minimise h_k(w; w_t) = F_k(w) + mu/2 ||w - w_t||²; the server averages their results.

    Li et al. 2020, "Federated Optimization in Heterogeneous Networks", Algorithm 2 and equation 2. The paper's inexact
    local solver is the workload's own local training; its gamma is not measured.
    """

    State = fedavg.GlobalModel

    def __init__(self, mu: float) -> None:
        self._mu = mu
        self._averaging = fedavg.FedAvg()

    def init(self, model: Record) -> fedavg.GlobalModel:
        return self._averaging.init(model)

    def plan(self, state: fedavg.GlobalModel, context: RoundContext) -> Exchange | None:
        exchange = self._averaging.plan(state, context)
        return exchange and replace(exchange, knobs={"mu": self._mu}, rules=("fedprox",))

    def finish(self, state: fedavg.GlobalModel, total: Accumulator, context: RoundContext) -> fedavg.GlobalModel:
        return self._averaging.finish(state, total, context)

    def arrays(self, state: fedavg.GlobalModel) -> Arrays:
        return self._averaging.arrays(state)


def build_strategy(config: Config, experiment: Experiment) -> FedProx:
    """The strategy a `Config` describes."""
    return FedProx(config.mu)
