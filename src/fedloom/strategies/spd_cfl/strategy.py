"""SPD-CFL, the server half: after each round, whether the next one is a step lower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedloom.core.config import Experiment
from fedloom.core.records import LORA_A, LORA_B, Arrays, Exchange, Groups, Info, Record, RoundContext
from fedloom.strategies._low_rank.engine import LowRank, Total
from fedloom.strategies._low_rank.method import Method, shared_method
from fedloom.strategies._low_rank.schedule import Schedule
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies.spd_cfl.config import Config
from fedloom.strategies.spd_cfl.rule import LOSS, PREVIOUS

_NEXT = "next rank"


class SpdCfl(LowRank):
    """r ← max(r_min, ⌊f r⌋) for the next round where the loss is at most its target and training was consistent.

    A reconstruction from the abstract of "SPD-CFL: Stepwise Parameter Dropout for Efficient Continual Federated
    Learning" (arXiv 2405.09394 v2). It names a stepwise drop of the rank on the server, a target performance in place
    of a dropout rate, a sensitivity-based measure of gradient consistency, and a regulariser towards the present and
    the previous global factors. How they are defined is ours: the sensitivity of a component is Σ |w Δw| over its row
    of A and its column of B, w the global factors before the round and Δw what the round changed; consistency is the
    cosine of all components' sensitivities in two successive rounds of equal rank.
    """

    def __init__(self, method: Method, config: Config) -> None:
        super().__init__(method)
        self._config = config

    def _rank(self, state: Adapters, round: int) -> int:
        return int(state.memory.get(_NEXT, self._config.rank_max))

    def _ready(self, state: Adapters, round: int) -> Adapters:
        ready = super()._ready(state, round)
        return ready if ready.rank == state.rank else replace(ready, before_a={}, before_b={}, scores={})

    def _plan_adapters(self, state: Adapters, context: RoundContext) -> Exchange:
        exchange, ready = super()._plan_adapters(state, context), self._ready(state, context.round)
        if not self._config.mu_previous or not ready.before_a:
            return exchange
        previous = Record({LORA_A: ready.before_a, LORA_B: ready.before_b})
        jobs = tuple(replace(job, inputs=(*job.inputs, PREVIOUS)) for job in exchange.jobs)
        return replace(exchange, jobs=jobs, inputs={**exchange.inputs, PREVIOUS: previous})

    def _aggregated(self, ready: Adapters, total: Total, context: RoundContext) -> tuple[Adapters, Info]:
        state, told = super()._aggregated(ready, total, context)
        loss = float(self._means(total).value()[LOSS][LOSS])
        scores = _sensitivities(ready, state)
        consistency = _cosine(ready.scores, scores) if ready.scores else math.nan
        met = self._config.target_loss is None or loss <= self._config.target_loss
        step = met and consistency >= self._config.consistency
        lower = max(self._config.rank_min, math.floor(self._config.step_factor * ready.rank))
        state = replace(
            state,
            before_a=ready.lora_a,
            before_b=ready.lora_b,
            scores=scores,
            memory={_NEXT: float(min(ready.rank, lower) if step else ready.rank)},
        )
        return state, {**told, "loss": loss, "consistency": None if math.isnan(consistency) else consistency}

    def _sent(self, ready: Adapters) -> Groups:
        return {**super()._sent(ready), LOSS: {LOSS: np.zeros((), np.float32)}}


def build_strategy(config: Config, experiment: Experiment) -> SpdCfl:
    """The strategy a `Config` describes."""
    rounds = experiment.rounds_known("strategy 'spd_cfl'")
    schedule = Schedule(rounds=rounds, rank_max=config.rank_max, rank_min=config.rank_min)
    method = shared_method(config, experiment, schedule)
    return SpdCfl(replace(method, rules=("spd_cfl",), knobs={"mu_previous": config.mu_previous}), config)


def _sensitivities(before: Adapters, after: Adapters) -> Arrays:
    """Σ |w Δw| of each component, (r,) by layer, float32."""
    found = {}
    for name, (a, b) in before.factors.items():
        rows = np.abs(a * (after.lora_a[name] - a)).sum(axis=1)
        found[name] = (rows + np.abs(b * (after.lora_b[name] - b)).sum(axis=0)).astype(np.float32)
    return found


def _cosine(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> float:
    """Cosine of two sets of sensitivities; 0 where one is all zeros."""
    x, y = (np.concatenate([side[name] for name in left]).astype(np.float64) for side in (left, right))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms > 0 else 0.0
