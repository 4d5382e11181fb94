"""Settings every installed strategy is tested with, and clients that answer whatever it asks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedloom.core.records import Exchange, Info, Job, Record, Update
from fedloom.core.seeds import generator
from fedloom.testing.federation import COHORTS, MadeUpFederation

VARIANTS: Mapping[str, list[dict[str, object]]] = {
    "fedprox": [{"mu": 0.0}, {"mu": 0.7}],
    "meat": [
        {},
        {"clients": "median"},
        {"precision": "half", "start": 1},
        {"ensemble": "middle", "window": 2, "start": 1},
        {"compare": ["last", "median"], "batch_norm": "cumulative", "table": True, "start": 1},
    ],
    "fedlora": [{}, {"wire": "int8", "mu": 0.1}, {"client_ranks": [1, 2]}],
    "ffa_lora": [{}, {"wire": "fp16"}],
    "flora": [{}, {"client_ranks": [2, 1, 2]}],
    "flexlora": [{}, {"client_ranks": [2, 1, 2]}],
    "hetlora": [{}, {"client_ranks": [2, 1], "gamma": 0.5}],
    "flasc": [{}, {"wire": "int8"}, {"density_down": 1.0}],
    "fed_adalora": [{}, {"wire": "fp16"}],
    "spd_cfl": [{}, {"consistency": -1.0, "mu_previous": 0.1, "head": "freeze"}],
    "sa_fedlora": [
        {"initiating_rounds": 1},
        {"initiating_rounds": 0, "shrink": "fold", "heating": 0.4},
        {"initiating_rounds": 1, "anchor": "pretrained", "aggregation": "product_svd"},
        {"initiating_rounds": 0, "aggregation": "stack"},
        {"initiating_rounds": 0, "aggregation": "residual", "allocation": "importance"},
        {"initiating_rounds": 1, "aggregation": "freeze_a", "wire": "int8"},
        {"initiating_rounds": 1, "init_mode": "lora", "order": "rising"},
    ],
    "server_opt": [{"optimizer": optimizer} for optimizer in ("momentum", "adam", "yogi", "adagrad")],
}


COMMON: Mapping[str, dict[str, object]] = {
    "sa_fedlora": {"targets": ["layer"], "rank_max": 2, "rank_min": 1, "cooling": 0.0, "heating": 0.0},
    "spd_cfl": {"targets": ["layer"], "rank_max": 2, "rank_min": 1},
    "fed_adalora": {"targets": ["layer", "other"], "rank_max": 2, "rank_min": 1},
} | {
    name: {"targets": ["layer"], "rank": 2} for name in ("fedlora", "ffa_lora", "flora", "flexlora", "hetlora", "flasc")
}
"""What a strategy needs to fit the model below."""


def measured(client: int) -> Info:
    """What a candidate of three classes might report: gains, and the credit they come to."""
    gain = generator(1, "measured", client).uniform(-0.3, 0.3, 3)
    return {"credit": float(abs(gain).sum()), "gain": gain.tolist()}


class Federation(MadeUpFederation):
    """A strategy with what it needs to fit the model, and clients that can do the actions it asks for."""

    def __init__(
        self,
        name: str,
        settings: Mapping[str, object],
        model: Record | None = None,
        rounds: int | None = len(COHORTS),
    ) -> None:
        super().__init__(name, {**COMMON.get(name, {}), **settings}, model, measured, rounds)

    def answer(self, exchange: Exchange, job: Job, rng: np.random.Generator) -> Update:
        counts = {"examples": 10, "clean": 8, "robust": 4}
        match job.kind:
            case "statistics":
                groups = {name: {"layer.bias": np.full(3, job.client, np.float32)} for name in job.inputs}
                return Update(num_examples=10, groups=groups)
            case "robustness":
                return Update(num_examples=10, info={"model": job.inputs[0], "test": counts, "validation": counts})
            case "attack":
                return Update(num_examples=10, info={"model": job.inputs[0], "verdicts": {"pgd": "10"}, "seconds": {}})
            case "estimate":
                return Update(num_examples=10, info={"sets": []})
        return super().answer(exchange, job, rng)
