"""SPD-CFL, the server half: decides after each round whether the next rank is lower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core.config import Experiment
from fedloom.core.records import Arrays, Groups, Info, Record
from fedloom.strategies._low_rank.aggregation import Factor, Total, means_of
from fedloom.strategies._low_rank.budget import Budget
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import shared_method
from fedloom.strategies._low_rank.schedule import Schedule
from fedloom.strategies._low_rank.setup import Setup
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies.spd_cfl.config import Config
from fedloom.strategies.spd_cfl.rule import LOSS, PREVIOUS

_NEXT = "next rank"


class Consistency(Factor):
    """r ← max(r_min, ⌊f r⌋) for the next round if the loss is at most its target and training was consistent.

    A reconstruction from the abstract of "SPD-CFL: Stepwise Parameter Dropout for Efficient Continual Federated
    Learning" (arXiv 2405.09394 v2). It names a stepwise drop of the rank on the server, a target performance in place
    of a dropout rate, a sensitivity-based measure of gradient consistency, and a regulariser towards the present and
    the previous global factors. How they are defined is ours: the sensitivity of a component is Σ |w Δw| over its row
    of A and its column of B, w the global factors before the round and Δw what the round changed; consistency is the
    cosine of all components' sensitivities in two successive rounds of equal rank.
    """

    def __init__(self, setup: Setup, config: Config) -> None:
        super().__init__(setup)
        self._config = config

    def resized(self, state: Adapters) -> Adapters:
        """Return the state without data of factors of another rank."""
        return replace(state, before_a={}, before_b={}, scores={})

    def inputs(self, ready: Adapters) -> Mapping[str, Record]:
        if not self._config.mu_previous or not ready.before_a:
            return {}
        return {PREVIOUS: Record({LORA_A: ready.before_a, LORA_B: ready.before_b})}

    def sent(self, ready: Adapters) -> Groups:
        return {**super().sent(ready), LOSS: {LOSS: np.zeros((), np.float32)}}

    def combine(self, ready: Adapters, total: Total) -> tuple[Adapters, Info]:
        state, reported = super().combine(ready, total)
        loss = float(means_of(total, self.setup.strategy).value()[LOSS][LOSS])
        scores = _sensitivities(ready, state)
        consistency = _cosine(ready.scores, scores) if ready.scores else math.nan
        rank = self._next_rank(ready.rank, loss, consistency)
        state = replace(state, before_a=ready.lora_a, before_b=ready.lora_b, scores=scores, memory={_NEXT: float(rank)})
        return state, {**reported, "loss": loss, "consistency": None if math.isnan(consistency) else consistency}

    def _next_rank(self, rank: int, loss: float, consistency: float) -> int:
        config = self._config
        met = config.target_loss is None or loss <= config.target_loss
        if not (met and consistency >= config.consistency):
            return rank
        return min(rank, max(config.rank_min, math.floor(config.step_factor * rank)))


class Stepwise(Budget):
    """The rank determined by the last round's updates; the largest in the first round."""

    def rank(self, state: Adapters, round: int) -> int:
        return int(state.memory.get(_NEXT, self.schedule.rank_max))


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """Return the strategy a `Config` describes."""
    rounds = experiment.rounds_known("strategy 'spd_cfl'")
    schedule = Schedule(rounds=rounds, rank_max=config.rank_max, rank_min=config.rank_min)
    method = shared_method(config, experiment, schedule)
    return LowRank(
        replace(
            method,
            budget=Stepwise(schedule),
            aggregation=Consistency(method.setup, config),
            rules=("spd_cfl",),
            knobs={"mu_previous": config.mu_previous},
        )
    )


def _sensitivities(before: Adapters, after: Adapters) -> Arrays:
    """Σ |w Δw| of each component, (r,) by layer, float32."""
    found = {}
    for name, (a, b) in before.factors.items():
        rows = np.abs(a * (after.lora_a[name] - a)).sum(axis=1)
        found[name] = (rows + np.abs(b * (after.lora_b[name] - b)).sum(axis=0)).astype(np.float32)
    return found


def _cosine(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> float:
    """Return the cosine of two sets of sensitivities; 0 if one is all zeros."""
    x, y = (np.concatenate([side[name] for name in left]).astype(np.float64) for side in (left, right))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms > 0 else 0.0
