"""What every selection must keep to, and what uniform selection promises besides."""

import time
import tracemalloc
from typing import Any

import numpy as np
import pydantic
import pytest

from fedloom.core import frames, registry
from fedloom.core.protocols import Roster, Selection
from fedloom.core.records import ClientReport, Mean
from fedloom.core.seeds import generator
from fedloom.core.state import dump_state, load_state
from fedloom.selection.uniform.selection import Uniform

ROSTER = Roster(population=12, sizes=tuple(range(10, 130, 10)))


@pytest.fixture(params=registry.names("selection"))
def selection(request: pytest.FixtureRequest) -> Selection[Any]:
    config = registry.part("selection", request.param, "config").Config
    try:
        settings = config.model_validate({"name": request.param})
    except pydantic.ValidationError:
        pytest.skip(f"{request.param} has settings without defaults; its own tests cover it")
    made: Selection[Any] = registry.part("selection", request.param, "selection").build_selection(settings)
    return made


def reports(cohort: tuple[int, ...]) -> list[ClientReport]:
    return [
        ClientReport(client=client, num_examples=10 * client, seconds=0.1 * client, metrics={"loss": Mean(client, 1.0)})
        for client in cohort
    ]


def choices(selection: Selection[Any], roster: Roster, size: int, rounds: int = 5, saved: bool = False) -> list[Any]:
    state, chosen = selection.init(roster), []
    for round in range(1, rounds + 1):
        if saved:
            frame = bytes(frames.encode(dump_state(state)))
            state = load_state(selection.State, frames.decode(frame))
        chosen.append(selection.choose(state, roster, size, generator(1, "selection", round)))
        state = selection.observe(state, reports(chosen[-1]))
    return chosen


@pytest.mark.parametrize("roster", [ROSTER, Roster(population=12)], ids=["sizes known", "sizes unknown"])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_cohort_is_so_many_distinct_clients_of_the_federation(
    selection: Selection[Any], roster: Roster, size: int
) -> None:
    for cohort in choices(selection, roster, size):
        assert isinstance(cohort, tuple) and all(type(client) is int for client in cohort)
        assert len(cohort) == len(set(cohort)) == size
        assert all(0 <= client < 12 for client in cohort)


def test_the_same_randomness_gives_the_same_cohorts_across_saving(selection: Selection[Any]) -> None:
    assert choices(selection, ROSTER, 4) == choices(selection, ROSTER, 4, saved=True)


def test_a_federation_of_one(selection: Selection[Any]) -> None:
    assert choices(selection, Roster(population=1), 1, rounds=2) == [(0,), (0,)]


def test_uniform_selection_is_uniform_and_so_is_its_order() -> None:
    clients, size, draws = 20, 5, 4000
    uniform, rng = Uniform(), generator(7, "chi-square")
    roster = Roster(population=clients)
    cohorts = np.array([uniform.choose(uniform.init(roster), roster, size, rng) for _ in range(draws)])
    for counts, expected in (
        (np.bincount(cohorts.ravel(), minlength=clients), draws * size / clients),
        (np.bincount(cohorts[:, 0], minlength=clients), draws / clients),
        (np.bincount(cohorts[:, -1], minlength=clients), draws / clients),
    ):
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        freedom = clients - 1
        assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_uniform_selection_costs_nothing_for_a_large_population() -> None:
    uniform, roster = Uniform(), Roster(population=10**7)
    rng = generator(1, "large")
    uniform.choose(uniform.init(roster), roster, 50, rng)
    tracemalloc.start()
    started = time.process_time()
    cohort = uniform.choose(uniform.init(roster), roster, 200, rng)
    spent = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(cohort)) == 200
    assert peak < 1 << 20  # a list of the population would take 80 MB
    assert spent < 0.05
