"""q-FedAvg (Li, Sanjabi, Beirami, Smith: "Fair Resource Allocation in Federated Learning", ICLR 2020, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate
from fedloom.core.protocols import Strategy
from fedloom.core.records import MODEL, Arrays, Exchange, Info, Record, RoundContext
from fedloom_qffl.config import Config


@dataclass(frozen=True, slots=True)
class Global:
    """The global model by array name, and the clients' losses of it in the last round."""

    model: Arrays
    losses: dict[str, float]
    """By client; JSON has text for keys."""


class QFedAvg(Strategy[Global, UpdateList]):
    """w' = w - sum_k F_k^q D_k / sum_k h_k, with D_k = L (w - w_k) and h_k = q F_k^(q-1) |D_k|^2 + L F_k^q.

    F_k is client k's loss of w before it trains, w_k its weights afterwards.
    """

    State = Global

    def __init__(self, config: Config) -> None:
        self._q, self._lipschitz = config.q, config.lipschitz

    def init(self, model: Record) -> Global:
        return Global(model.groups[MODEL], {})

    def plan(self, state: Global, context: RoundContext) -> Exchange:
        # F_k^q differs from client to client: every update is needed apart.
        jobs = context.jobs("train.appraised")  # the workload's own action
        return Exchange(jobs=jobs, inputs={MODEL: Record({MODEL: state.model})}, accumulator="separate")

    def finish(self, state: Global, total: UpdateList, context: RoundContext) -> Global:
        q, lipschitz = self._q, self._lipschitz
        step = {name: np.zeros(array.shape) for name, array in state.model.items()}
        scale, losses = 0.0, dict[str, float]()
        for client, update in total.updates:
            loss = losses[str(client)] = update.metrics["loss"].value
            if not loss > 0:
                raise BadUpdate(f"client {client}: expected a loss above 0 for q-FedAvg, got {loss!r}")
            apart = {
                name: lipschitz * (array.astype(np.float64) - update.groups[MODEL][name])
                for name, array in state.model.items()
            }
            for name, difference in apart.items():
                step[name] += loss**q * difference
            squares = sum(float((difference**2).sum()) for difference in apart.values())
            scale += q * loss ** (q - 1) * squares + lipschitz * loss**q
        model = {
            name: np.asarray(array - step[name] / scale).astype(array.dtype) for name, array in state.model.items()
        }
        return Global(model, losses)

    def arrays(self, state: Global) -> Arrays:
        return state.model

    def report(self, state: Global) -> Info:
        return {"losses": state.losses}


def build_strategy(config: Config, experiment: Experiment) -> QFedAvg:
    """Return the strategy a `Config` describes."""
    return QFedAvg(config)
