"""FedProx, the server half: federated averaging's round, with mu in the jobs. The client half is `rule.py`."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.core.records import Exchange, RoundContext
from fedloom.strategies.fedavg.strategy import FedAvg, GlobalModel
from fedloom.strategies.fedprox.config import Config


class FedProx(FedAvg):
    """Clients minimise h_k(w; w_t) = F_k(w) + mu/2 ||w - w_t||²; the server averages their results.

    Li et al. 2020, "Federated Optimization in Heterogeneous Networks", Algorithm 2 and equation 2. The paper's inexact
    local solver is the workload's own local training; its gamma is not measured.
    """

    def __init__(self, mu: float) -> None:
        self._mu = mu

    def plan(self, state: GlobalModel, context: RoundContext) -> Exchange | None:
        exchange = super().plan(state, context)
        return exchange and replace(exchange, knobs={"mu": self._mu}, rules=("fedprox",))


def build_strategy(config: Config, experiment: Experiment) -> FedProx:
    """Return the strategy a `Config` describes."""
    return FedProx(config.mu)
