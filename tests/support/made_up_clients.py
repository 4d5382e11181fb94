"""A federation of three made-up clients, for tests of any installed strategy: its rounds without server or network."""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedloom.core import frames, registry
from fedloom.core.accumulators import Accumulator
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.pinned import Pinned
from fedloom.core.plugins import AnyStrategy, build_rules, build_strategy, chained, make_accumulator
from fedloom.core.protocols import LocalRule, Pending
from fedloom.core.records import MODEL, Array, Exchange, Job, Mean, Record, RoundContext, Update, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.core.state import dump_state

COHORTS = ((4, 0, 7), (2, 4, 5), (1, 7, 3), (6, 0, 2))
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
    "flasc": [{}, {"wire": "int8"}],
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


def initial_model() -> Record:
    rng = generator(3, "init")
    return Record(
        {
            MODEL: {
                "layer.weight": rng.normal(size=(3, 4)).astype(np.float32),
                "layer.bias": rng.normal(size=3).astype(np.float32),
                "half": rng.normal(size=5).astype(np.float16),
                "scalar": np.array(0.5, np.float64),
                "steps": np.array(0, np.int64),
                "empty": np.zeros((0, 2), np.float32),
                "other.weight": rng.normal(size=(5, 3)).astype(np.float32),
                "head.weight": rng.normal(size=(2, 3)).astype(np.float32),
            }
        },
        {
            "adaptable": {
                "layer": {"kind": "linear", "weight": "layer.weight", "out": 3, "in": 4},
                "other": {"kind": "conv1d", "weight": "other.weight", "out": 3, "in": 5},
            },
            "head": ["head.weight"],
        },
    )


def _measured(rng: np.random.Generator) -> dict[str, object]:
    """What a candidate of three classes might report: gains, and the credit they come to."""
    gain = rng.uniform(-0.3, 0.3, 3)
    return {"credit": float(abs(gain).sum()), "gain": gain.tolist()}


class Federation:
    """An in-process stand-in for server and clients; whatever it hands out cannot be written to.

    Args:
        name: of the strategy.
        settings: of the strategy, beside what it needs to fit the model.
        model: what the workload begins with; `initial_model` where it is not given.
        rounds: of the run; None leaves their number open.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, object],
        model: Record | None = None,
        rounds: int | None = len(COHORTS),
    ) -> None:
        self.name, self.model, self.rounds = name, model or initial_model(), rounds
        config: type[PluginSettings] = registry.part("strategies", name, "config").Config
        self.experiment = Experiment.model_construct(
            rounds=rounds or "open", clients=8, cohort=3, seed=1, workload=PluginSettings(name="image_classification")
        )
        parsed = config.model_validate({"name": name, **COMMON.get(name, {}), **settings})
        self.strategy: AnyStrategy = build_strategy(parsed, self.experiment)
        self.answers: list[tuple[Exchange, Job, Update]] = []
        """Every update so far, as it left its client, with the job it is of."""

    def context(self, round: int) -> RoundContext:
        return RoundContext(round=round, cohort=COHORTS[round - 1], population=8, rounds=self.rounds, seed=1)

    def total(self, exchange: Exchange, clients: int | None = None) -> Accumulator:
        """The exchange's fold over made-up training: each client moves every array a little its own way."""
        total = make_accumulator(exchange.accumulator, None)
        for job in exchange.jobs[:clients]:
            rng = generator(1, "work", job.round, job.client)
            job = replace(job, knobs={**exchange.knobs, **job.knobs})
            update = _answer(exchange, job, chained(build_rules(exchange.rules)), rng)
            self.answers.append((exchange, job, update))
            if exchange.park:
                update = replace(update, groups={})
            if exchange.measure:
                update = replace(update, info={**update.info, **_measured(rng)})
            total.add(update, job.client + 1.0, job.client)
        return total

    def round(self, state: object, round: int, clients: int | None = None) -> object:
        context = self.context(round)
        exchange = self.strategy.plan(state, context)
        assert exchange is not None
        step = self.strategy.finish(state, self.total(exchange, clients), context)
        while isinstance(step, Pending):
            step = self.strategy.finish(step.state, self.total(step.exchange, clients), context)
        return step

    def run(self, rounds: int = len(COHORTS)) -> list[object]:
        states = [self.strategy.init(read_only(self.model))]
        for round in range(1, rounds + 1):
            states.append(self.round(states[-1], round))
        return states


def _answer(exchange: Exchange, job: Job, rule: LocalRule | None, rng: np.random.Generator) -> Update:
    """What a client answers to a job."""
    counts = {"examples": 10, "clean": 8, "robust": 4}
    match job.kind:
        case "train" | "collect":
            return _trained(exchange, job, rule, rng)
        case "statistics":
            groups = {name: {"layer.bias": np.full(3, job.client, np.float32)} for name in job.inputs}
            return Update(num_examples=10, groups=groups)
        case "robustness":
            return Update(num_examples=10, info={"model": job.inputs[0], "test": counts, "validation": counts})
        case "attack":
            return Update(num_examples=10, info={"model": job.inputs[0], "verdicts": {"pgd": "10"}, "seconds": {}})
        case "estimate":
            return Update(num_examples=10, info={"sets": []})
    raise AssertionError(f"no answer is made up for a job of kind {job.kind!r}")


def _trained(exchange: Exchange, job: Job, rule: LocalRule | None, rng: np.random.Generator) -> Update:
    """One step along made-up gradients, with the client half of the strategy where it has one.

    Trained is the model, and each input beside it that has a group of its own name.
    """
    rule = rule or LocalRule()
    inputs = rule.incoming(exchange.inputs, job)
    model = inputs[MODEL]
    groups = {**model.groups, **{name: record.groups[name] for name, record in inputs.items() if name in record.groups}}
    moved = {group: {name: _moved(array, rng) for name, array in named.items()} for group, named in groups.items()}
    trained = [(group, name) for group, name, array in Record(groups).items() if array.dtype.kind == "f"]
    weights = [groups[group][name] for group, name in trained]
    gradients = [np.asarray(w - moved[group][name]) for w, (group, name) in zip(weights, trained, strict=True)]
    if exchange.rules:
        rule.begin(trained, job.knobs)
        rule.adjust_gradients(gradients, weights, weights, job.knobs)
        for gradient, w, (group, name) in zip(gradients, weights, trained, strict=True):
            moved[group][name] = np.asarray(w - gradient)
    update = Update(num_examples=job.client + 1, groups=moved, metrics={"loss": Mean(1.0, 1.0)})
    return rule.outgoing(update, job.knobs)


def _moved(array: Array, rng: np.random.Generator) -> Array:
    if array.dtype.kind in "iu":
        return np.asarray(array + array.dtype.type(7))
    return np.asarray(array + 0.1 * rng.normal(size=array.shape)).astype(array.dtype)


def reread(pinned: Mapping[str, Pinned]) -> dict[str, Pinned]:
    return {sha256: Pinned.of(frames.decode(bytes(frames.encode(record)))) for sha256, record in pinned.items()}


def read_only(record: Record) -> Record:
    for _, _, array in record.items():
        array.setflags(write=False)
    return record


def digest(state: object) -> str:
    record = dump_state(state)
    arrays = {f"{group}/{name}": array for group, name, array in record.items()}
    return arrays_sha256(arrays) + json.dumps(record.info, sort_keys=True)
