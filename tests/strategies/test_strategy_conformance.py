"""What every strategy must keep to, on every strategy that is installed and needs nothing but arrays."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pydantic
import pytest

from fedloom.core import frames, registry
from fedloom.core.accumulators import BUILTIN, Accumulator
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.pinned import Pinned
from fedloom.core.protocols import Pending, Strategy
from fedloom.core.records import MODEL, Exchange, Job, Mean, Record, RoundContext, Update, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.core.state import dump_state, load_state, pinned_in

NAMES = [name for name in registry.names("strategies") if name != "flower"]  # foreign objects keep their own state
COHORTS = ((4, 0, 7), (2, 4, 5), (1, 7, 3), (6, 0, 2))
VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "fedprox": [{"mu": 0.0}, {"mu": 0.7}],
    "meat": [
        {},
        {"clients": "median"},
        {"precision": "half", "start": 1},
        {"ensemble": "middle", "window": 2, "start": 1},
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


COMMON: Mapping[str, dict[str, Any]] = {
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


def _measured(rng: Any) -> dict[str, Any]:
    """What a candidate of three classes might report: gains, and the credit they come to."""
    gain = rng.uniform(-0.3, 0.3, 3)
    return {"credit": float(abs(gain).sum()), "gain": gain.tolist()}


class Federation:
    """An in-process stand-in for server and clients; whatever it hands out cannot be written to."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        config: type[PluginSettings] = registry.part("strategies", name, "config").Config
        self.experiment = Experiment.model_construct(rounds=len(COHORTS), clients=8, cohort=3, seed=1)
        self.strategy: Strategy[Any] = registry.part("strategies", name, "strategy").build_strategy(
            config.model_validate({"name": name, **COMMON.get(name, {}), **settings}), self.experiment
        )

    def context(self, round: int) -> RoundContext:
        return RoundContext(round=round, cohort=COHORTS[round - 1], population=8, rounds=len(COHORTS), seed=1)

    def total(self, exchange: Exchange, clients: int | None = None) -> Accumulator:
        """The exchange's fold over made-up training: each client moves every array a little its own way."""
        kind = BUILTIN.get(exchange.accumulator)
        total: Any = (kind or registry.part("strategies", exchange.accumulator, "accumulator").Accumulator)()
        rule = registry.part("strategies", exchange.rules[0], "rule") if exchange.rules else None
        for job in exchange.jobs[:clients]:
            rng = generator(1, "work", job.round, job.client)
            job = replace(job, knobs={**exchange.knobs, **job.knobs})
            update = _trained(exchange, job, rule.build_rule() if rule else None, rng)
            if exchange.park:
                update = replace(update, groups={})
            if exchange.measure:
                update = replace(update, info={**update.info, **_measured(rng)})
            total.add(update, job.client + 1.0, job.client)
        return total  # type: ignore[no-any-return]

    def round(self, state: Any, round: int, clients: int | None = None) -> Any:
        context = self.context(round)
        exchange = self.strategy.plan(state, context)
        assert exchange is not None
        step = self.strategy.finish(state, self.total(exchange, clients), context)
        while isinstance(step, Pending):
            step = self.strategy.finish(step.state, self.total(step.exchange, clients), context)
        return step

    def run(self, rounds: int = len(COHORTS)) -> list[Any]:
        states = [self.strategy.init(read_only(initial_model()))]
        for round in range(1, rounds + 1):
            states.append(self.round(states[-1], round))
        return states


def _trained(exchange: Exchange, job: Job, rule: Any, rng: np.random.Generator) -> Update:
    """One step along made-up gradients, with the client half of the strategy where it has one."""
    inputs = rule.incoming(exchange.inputs, job) if hasattr(rule, "incoming") else exchange.inputs
    model = inputs[MODEL]
    moved = {
        group: {name: _moved(array, rng) for name, array in named.items()} for group, named in model.groups.items()
    }
    trained = [(group, name) for group, name, array in model.items() if array.dtype.kind == "f"]
    weights = [model.groups[group][name] for group, name in trained]
    gradients = [np.asarray(w - moved[group][name]) for w, (group, name) in zip(weights, trained, strict=True)]
    if rule is not None:
        if hasattr(rule, "begin"):
            rule.begin(trained, job.knobs)
        rule.adjust_gradients(gradients, weights, weights, job.knobs)
        for gradient, w, (group, name) in zip(gradients, weights, trained, strict=True):
            moved[group][name] = np.asarray(w - gradient)
    update = Update(num_examples=job.client + 1, groups=moved, metrics={"loss": Mean(1.0, 1.0)})
    return rule.outgoing(update, job.knobs) if rule is not None else update  # type: ignore[no-any-return]


def _moved(array: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if array.dtype.kind in "iu":
        return array + array.dtype.type(7)
    return (array + 0.1 * rng.normal(size=array.shape)).astype(array.dtype)


def _reread(pinned: Mapping[str, Pinned]) -> dict[str, Pinned]:
    return {sha256: Pinned.of(frames.decode(bytes(frames.encode(record)))) for sha256, record in pinned.items()}


def read_only(record: Record) -> Record:
    for _, _, array in record.items():
        array.setflags(write=False)
    return record


def digest(state: Any) -> str:
    record = dump_state(state)
    arrays = {f"{group}/{name}": array for group, name, array in record.items()}
    return arrays_sha256(arrays) + json.dumps(record.info, sort_keys=True)


@pytest.fixture(
    params=[(name, settings) for name in NAMES for settings in VARIANTS.get(name, [{}])],
    ids=lambda param: "-".join([param[0], *map(str, param[1].values())]),
)
def federation(request: pytest.FixtureRequest) -> Federation:
    try:
        return Federation(*request.param)
    except pydantic.ValidationError:
        pytest.skip(f"{request.param[0]} has settings without defaults; its own tests cover it")


def test_the_model_keeps_its_names_dtypes_and_shapes(federation: Federation) -> None:
    want = {name: (array.dtype, array.shape) for name, array in initial_model().groups[MODEL].items()}
    for state in federation.run():
        arrays = federation.strategy.arrays(state)
        assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == want
        assert all(np.isfinite(array).all() for array in arrays.values())


def test_the_model_starts_as_the_workload_made_it_and_then_moves(federation: Federation) -> None:
    first, second = (federation.strategy.arrays(state) for state in federation.run(1))
    assert arrays_sha256(first) == arrays_sha256(initial_model().groups[MODEL])
    still = {name for name in first if first[name].size and not (first[name] != second[name]).any()}
    frozen = {"layer.bias", "half", "scalar", "steps", "other.weight", "head.weight"}
    assert still <= (frozen if federation.name in COMMON else set())


def test_plan_asks_every_client_of_the_cohort_and_nobody_else(federation: Federation) -> None:
    for round, state in enumerate(federation.run(len(COHORTS) - 1), 1):
        exchange = federation.strategy.plan(state, federation.context(round))
        assert exchange is not None
        assert {job.client for job in exchange.jobs} == set(COHORTS[round - 1])
        assert all(job.round == round for job in exchange.jobs)
        assert all(name in exchange.inputs for job in exchange.jobs for name in job.inputs)
        json.dumps([exchange.knobs, *(job.knobs for job in exchange.jobs)], allow_nan=False)
        if exchange.rules:
            assert registry.has_part("strategies", exchange.rules[0], "rule")
        assert exchange.accumulator in BUILTIN or registry.has_part("strategies", exchange.accumulator, "accumulator")


def test_a_state_saved_and_loaded_between_any_two_rounds_goes_on_with_the_same_bits(federation: Federation) -> None:
    whole = [digest(state) for state in federation.run()]
    state = federation.strategy.init(read_only(initial_model()))
    for round in range(len(COHORTS) + 1):
        state = federation.round(state, round) if round else state
        frame = bytes(frames.encode(dump_state(state)))
        state = load_state(federation.strategy.State, frames.decode(frame), _reread(pinned_in(state)))
        assert digest(state) == whole[round]
        read_only(dump_state(state))


def test_nothing_passed_in_is_changed(federation: Federation) -> None:
    states = federation.run()
    before = [digest(state) for state in states]
    for round, state in enumerate(states[:-1], 1):
        read_only(dump_state(state))  # a write now raises
        federation.round(state, round)
    assert [digest(state) for state in states] == before


def test_the_same_arguments_give_the_same_result_and_no_object_remembers_a_run(federation: Federation) -> None:
    once = [digest(state) for state in federation.run()]
    assert [digest(state) for state in federation.run()] == once
    state = federation.run(2)[-1]
    assert digest(federation.round(state, 3)) == digest(federation.round(state, 3)) == once[3]


def test_a_round_with_some_answers_missing_is_a_round(federation: Federation) -> None:
    state = federation.strategy.init(read_only(initial_model()))
    after = federation.round(state, 1, clients=2)
    assert all(np.isfinite(array).all() for array in federation.strategy.arrays(after).values())
    assert digest(after) != digest(federation.round(state, 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_folder_explains_itself(name: str) -> None:
    assert registry.summary("strategies", name).endswith(".")
    config = registry.part("strategies", name, "config").Config
    undocumented = [field for field, info in config.model_fields.items() if not info.description and field != "name"]
    assert not undocumented
