"""What every strategy must keep to, on every strategy that is installed and needs nothing but arrays."""

import json

import numpy as np
import pydantic
import pytest
from made_up_clients import COHORTS, COMMON, VARIANTS, Federation, digest, initial_model, read_only, reread

from fedloom.core import frames, registry
from fedloom.core.accumulators import BUILTIN
from fedloom.core.records import MODEL, arrays_sha256
from fedloom.core.state import dump_state, load_state, pinned_in

NAMES = [name for name in registry.names("strategies") if name != "flower"]  # foreign objects keep their own state


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
        state = load_state(federation.strategy.State, frames.decode(frame), reread(pinned_in(state)))
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
