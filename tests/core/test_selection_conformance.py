"""What every selection must keep to, and what uniform selection promises besides."""

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedloom.core import frames, registry
from fedloom.core.errors import UsageError
from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport, Info, Mean
from fedloom.core.seeds import generator
from fedloom.core.state import dump_state, load_state
from fedloom.selection.uniform.selection import Uniform

CLASSES = 4
SIZES = tuple(range(10, 130, 10))
LABELS = tuple(tuple(size // 2 * ((k % CLASSES == c) + ((k + 1) % CLASSES == c)) for c in range(CLASSES))
               for k, size in enumerate(SIZES))  # fmt: skip
ROSTER = Roster(population=12, sizes=SIZES, label_counts=LABELS)
ROSTERS = {"all known": ROSTER, "sizes known": replace(ROSTER, label_counts=()), "nothing known": Roster(population=12)}


def rates(client: int) -> list[float]:
    return [float(x) for x in generator(1, "rates", client).uniform(-1, 1, CLASSES)]


FAKES: dict[str, Callable[[int], Info]] = {
    "firing_credit": lambda client: {"credit": float(np.abs(rates(client)).sum()), "gain": rates(client)},
    "update_norm": lambda client: {"norm": 1.0 + client % 5},
    "divfl": lambda client: {"update": rates(client)},
    "hics": lambda client: {"output": rates(client)},
    "spike_activity": lambda client: {"activity": [abs(rate) for rate in rates(client)], "widths": [3, 1]},
}
"""What each measure might report."""


@pytest.fixture(params=registry.names("selection"))
def selection(request: pytest.FixtureRequest) -> Selection[Any]:
    config = registry.part("selection", request.param, "config").Config
    settings = config.model_validate({"name": request.param})
    made: Selection[Any] = registry.part("selection", request.param, "selection").build_selection(settings)
    return made


def reports(cohort: Sequence[int], measure: str | None = None) -> list[ClientReport]:
    return [
        ClientReport(
            client=client,
            num_examples=10 + 10 * client,
            seconds=0.1 * client,
            metrics={"loss": Mean(2.0 + client, 1.0)},
            info=FAKES[measure](client) if measure else {},
        )
        for client in cohort
    ]


def answered(probe: Probe | None) -> list[ClientReport]:
    return reports(probe.candidates, probe.measure) if probe is not None else []


def choices(selection: Selection[Any], roster: Roster, size: int, rounds: int = 5, saved: bool = False) -> list[Any]:
    state, chosen = selection.init(roster), []
    for round in range(1, rounds + 1):
        if saved:
            frame = bytes(frames.encode(dump_state(state)))
            state = load_state(selection.State, frames.decode(frame))
        before = bytes(frames.encode(dump_state(state)))
        probe = selection.probe(state, roster, size, generator(1, "selection", round))
        probed = answered(probe)
        stream = "choice" if probed else "selection"
        chosen.append(selection.choose(state, roster, size, generator(1, stream, round), probed))
        after = selection.observe(state, reports(chosen[-1]), probed)
        assert bytes(frames.encode(dump_state(state))) == before, "the state was changed in place"
        state = after
    return chosen


@pytest.mark.parametrize("known", ROSTERS)
@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_cohort_is_so_many_distinct_clients_of_the_federation(
    selection: Selection[Any], known: str, size: int
) -> None:
    try:
        selection.init(ROSTERS[known])
    except UsageError as error:  # a selection may need to know the clients, and says so before round 1
        assert known != "all known"
        assert "WorkloadInfo." in str(error)
        return
    for cohort in choices(selection, ROSTERS[known], size):
        assert isinstance(cohort, tuple) and all(type(client) is int for client in cohort)
        assert len(cohort) == len(set(cohort)) == size
        assert all(0 <= client < 12 for client in cohort)


def test_the_same_randomness_gives_the_same_cohorts_across_saving(selection: Selection[Any]) -> None:
    assert choices(selection, ROSTER, 4, rounds=20) == choices(selection, ROSTER, 4, rounds=20, saved=True)


def test_clients_that_join_may_be_chosen_and_those_before_are_remembered(selection: Selection[Any]) -> None:
    before = Roster(population=9, sizes=SIZES[:9], label_counts=LABELS[:9])
    state = selection.init(before)
    for round in range(1, 4):
        probed = answered(selection.probe(state, before, 4, generator(1, "selection", round)))
        chosen = selection.choose(state, before, 4, generator(1, "choice", round), probed)
        state = selection.observe(state, reports(chosen), probed)
    grown = selection.grow(state, ROSTER)
    for (_, name, old), (_, _, new) in zip(dump_state(state).items(), dump_state(grown).items(), strict=True):
        kept = new[tuple(slice(side) for side in old.shape)]
        np.testing.assert_array_equal(kept, old, err_msg=name)
    probed = answered(selection.probe(grown, ROSTER, 12, generator(1, "probe")))
    chosen = selection.choose(grown, ROSTER, 12, generator(1, "choose"), probed)
    assert sorted(chosen) == list(range(12))
    after = selection.observe(grown, reports(chosen), probed)
    assert bytes(frames.encode(dump_state(after)))


def test_a_federation_of_one(selection: Selection[Any]) -> None:
    roster = Roster(population=1, sizes=(10,), label_counts=((4, 6, 0, 0),))
    assert choices(selection, roster, 1, rounds=3) == [(0,), (0,), (0,)]


def test_a_probe_asks_distinct_clients_at_least_the_cohort(selection: Selection[Any]) -> None:
    for size in (1, 5, 12):
        probe = selection.probe(selection.init(ROSTER), ROSTER, size, generator(1, size))
        if probe is None:
            continue
        assert all(type(client) is int and 0 <= client < 12 for client in probe.candidates)
        assert size <= len(probe.candidates) == len(set(probe.candidates))
        assert probe.kind in ("evaluate", "measure", "train")
        assert (probe.measure is None) == (probe.kind == "evaluate")
        if probe.measure is not None:
            assert registry.has_part("selection", probe.measure, "measure")


def test_only_candidates_that_answered_are_chosen(selection: Selection[Any]) -> None:
    state = selection.init(ROSTER)
    probed = answered(selection.probe(state, ROSTER, 5, generator(1, "probe")))
    if not probed:
        return
    for missing in (1, len(probed) - 5, len(probed) - 3):  # in the last case only three have answered
        left = probed[missing:]
        chosen = selection.choose(state, ROSTER, 5, generator(1, "choose"), left)
        assert len(chosen) == len(set(chosen)) == min(5, len(left))
        assert set(chosen) <= {report.client for report in left}


def test_no_number_a_candidate_makes_up_breaks_the_choice(selection: Selection[Any]) -> None:
    state = selection.init(ROSTER)
    probed = answered(selection.probe(state, ROSTER, 5, generator(1, "probe")))
    if not probed:
        return
    for nonsense in (float("nan"), float("inf"), "many", None, [], [float("nan")] * CLASSES, 1e300):
        odd = replace(
            probed[0], metrics={"loss": Mean(float("nan"), 1.0)}, info=dict.fromkeys(probed[0].info, nonsense)
        )
        chosen = selection.choose(state, ROSTER, 5, generator(1, "choose"), [odd, *probed[1:]])
        assert len(set(chosen)) == 5
        frames.encode(dump_state(selection.observe(state, reports(chosen), [odd, *probed[1:]])))


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


UNIFORM_CANDIDATES = [
    "local_loss",
    "update_norm",
    "divfl",
    "hics",
    "firing_credit",
    "spike_activity",
]


@pytest.mark.parametrize("name", UNIFORM_CANDIDATES)
def test_selections_among_uniform_candidates_cost_nothing_for_a_large_population(name: str) -> None:
    settings = registry.part("selection", name, "config").Config(name=name)
    chooser: Selection[Any] = registry.part("selection", name, "selection").build_selection(settings)
    roster = Roster(population=10**7)
    state = chooser.init(roster)
    tracemalloc.start()
    probed = answered(chooser.probe(state, roster, 5, generator(1, "large")))
    chosen = chooser.choose(state, roster, 5, generator(1, "choose"), probed)
    chooser.observe(state, reports(chosen), probed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(probed) == 20 and len(chosen) == 5
    assert peak < 1 << 20
