"""Federated AdaLoRA, the server half: averaged scores decide which components are left, over all layers together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedloom.adapters.names import LORA_A, LORA_B, LORA_E
from fedloom.core.config import Experiment
from fedloom.core.records import MODEL, Array, Groups, Info
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.aggregation import Aggregation, Total, mean_or_shared, means_of
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import shared_method
from fedloom.strategies._low_rank.resizing import Resizing
from fedloom.strategies._low_rank.schedule import Schedule
from fedloom.strategies._low_rank.shrink import Components, ranks_by_importance
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies.fed_adalora.config import Config
from fedloom.strategies.fed_adalora.rule import SCORES

_SPREAD = 0.02
"""Standard deviation of the first factors, as AdaLoRA draws them; gates start at zero."""


class Triplets(Aggregation):
    """W + s·P Λ Q with P = B, Λ = diag(e), Q = A; all three are averaged, and so are the clients' scores.

    AdaLoRA (Zhang et al. 2023) made federated: clients measure (`rule.py`), the server averages the scores with the
    weights p_k, and `ByScore` keeps the best components.
    """

    @property
    def accumulator(self) -> str:
        return mean_or_shared(self.setup)

    def begin(self, state: Adapters, *, given: bool) -> Adapters:
        """Return the state with gates: open on given factors, closed on factors drawn as in AdaLoRA."""
        if given:
            return replace(state, lora_e={name: np.ones(len(a), np.float32) for name, a in state.lora_a.items()})
        return replace(
            state,
            lora_a={name: self._drawn(LORA_A, name, a.shape) for name, a in state.lora_a.items()},
            lora_b={name: self._drawn(LORA_B, name, b.shape) for name, b in state.lora_b.items()},
            lora_e={name: np.zeros(len(a), np.float32) for name, a in state.lora_a.items()},
        )

    def sent(self, ready: Adapters) -> Groups:
        return {**super().sent(ready), LORA_E: ready.lora_e, SCORES: ready.lora_e}

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        means = means_of(total, self.setup.strategy).value()
        state = replace(ready, model=means[MODEL], lora_a=means[LORA_A], lora_b=means[LORA_B])
        return replace(state, lora_e=means[LORA_E], scores=means[SCORES]), {}

    def _drawn(self, group: str, name: str, shape: tuple[int, ...]) -> Array:
        rng = generator(self.setup.seed, "adalora", group, name)
        return (_SPREAD * rng.standard_normal(shape)).astype(np.float32)


class ByScore(Resizing):
    """Keeps the r_t x layers components of the highest scores, over all layers together, at least one of each layer.

    A dropped component is not restored.
    """

    def resize(self, state: Adapters, rank: int) -> Adapters:
        if not state.scores:
            return state
        orders = {name: np.argsort(-scores, kind="stable") for name, scores in state.scores.items()}
        components = {
            name: Components(state.lora_a[name], state.lora_b[name], state.scores[name][order].astype(np.float64))
            for name, order in orders.items()
        }
        ranks = ranks_by_importance(components, rank)
        kept = {name: np.sort(order[: ranks[name]]) for name, order in orders.items()}
        return replace(
            state,
            lora_a={name: np.ascontiguousarray(a[kept[name]]) for name, a in state.lora_a.items()},
            lora_b={name: np.ascontiguousarray(b[:, kept[name]]) for name, b in state.lora_b.items()},
            lora_e={name: np.ascontiguousarray(e[kept[name]]) for name, e in state.lora_e.items()},
            scores={name: scores[kept[name]] for name, scores in state.scores.items()},
        )


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """Return the strategy a `Config` describes."""
    schedule = Schedule(
        rounds=experiment.rounds_known("strategy 'fed_adalora'"),
        rank_max=config.rank_max,
        rank_min=config.rank_min,
        heating=config.heating,
        cooling=config.cooling,
    )
    method = shared_method(config, experiment, schedule)
    return LowRank(
        replace(
            method,
            resizing=ByScore(),
            aggregation=Triplets(method.setup),
            rules=("fed_adalora",),
            knobs={"orthogonality": config.orthogonality, "beta1": config.beta1, "beta2": config.beta2},
        )
    )
