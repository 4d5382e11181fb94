"""data_size, power_of_choice, local_loss: draws by size, ranks by loss."""

import itertools
from collections import Counter

import pytest
from selecting import Build, Fits, Reports, probed

from fedloom.core.errors import ConfigError, UsageError
from fedloom.core.protocols import Roster
from fedloom.core.seeds import generator

ROSTER = Roster(population=4, sizes=(10, 20, 30, 40))
NAMES = ("local_loss", "power_of_choice", "update_norm", "optimal_sampling", "divfl", "firing_credit")


def test_data_size_draws_in_proportion_to_examples(build: Build, fits: Fits) -> None:
    selection, rng, draws = build("data_size"), generator(1, "sizes"), 6000
    seen = Counter(selection.choose(selection.init(ROSTER), ROSTER, 2, rng) for _ in range(draws))
    pairs = list(itertools.permutations(range(4), 2))
    n = ROSTER.sizes
    expected = [draws * n[a] / 100 * n[b] / (100 - n[a]) for a, b in pairs]
    assert fits([seen[pair] for pair in pairs], expected)


def test_data_size_never_asks_clients_without_data(build: Build) -> None:
    roster = Roster(population=4, sizes=(0, 5, 0, 5))
    selection = build("data_size")
    assert set(selection.choose(selection.init(roster), roster, 2, generator(1))) == {1, 3}
    with pytest.raises(UsageError, match=r"draws 3 clients .* but only 2 of 4 have any"):
        selection.choose(selection.init(roster), roster, 3, generator(1))


@pytest.mark.parametrize("name", ["data_size", "power_of_choice"])
def test_unknown_sizes_are_reported_before_round_1(build: Build, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}.*needs the number of examples.*declares 0 sizes for 4 clients"):
        build(name).init(Roster(population=4))


def test_power_of_choice_keeps_the_largest_losses(build: Build, reports: Reports) -> None:
    selection = build("power_of_choice", candidates=4)
    probe = probed(selection, selection.init(ROSTER), ROSTER, 2, generator(1))
    assert probe.kind == "evaluate" and probe.measure is None and sorted(probe.candidates) == [0, 1, 2, 3]
    reported = reports([2, 0, 3, 1], losses=[0.5, 2.0, 1.0, 3.0])
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (0, 1)  # in candidate order
    assert selection.choose(selection.init(ROSTER), ROSTER, 3, generator(1), reported[:2]) == (2, 0)
    nan = reports([2, 0, 3], losses=[float("nan"), 0.1, 0.2])
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), nan) == (0, 3)


def test_power_of_choice_draws_candidates_by_size(build: Build, fits: Fits) -> None:
    selection, rng, draws = build("power_of_choice", candidates=1), generator(1, "candidates"), 4000
    seen = Counter(probed(selection, selection.init(ROSTER), ROSTER, 1, rng).candidates[0] for _ in range(draws))
    assert fits([seen[k] for k in range(4)], [draws * n / 100 for n in ROSTER.sizes])
    even = build("power_of_choice", candidates=1, candidate_draw="uniform")
    seen = Counter(probed(even, even.init(ROSTER), ROSTER, 1, rng).candidates[0] for _ in range(draws))
    assert fits([seen[k] for k in range(4)], [draws / 4] * 4)


def test_equal_losses_go_to_the_first_drawn_not_to_an_id(build: Build, reports: Reports) -> None:
    selection = build("local_loss", candidates=4)
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reports([3, 1, 0, 2], [1.0] * 4)) == (3, 1)


def test_the_controls_see_the_candidates_of_firing_credit(build: Build) -> None:
    roster = Roster(population=50)
    drawn = {
        name: probed(build(name), build(name).init(roster), roster, 5, generator(1, "selection", 3)).candidates
        for name in ("firing_credit", "local_loss", "update_norm", "divfl", "spike_activity")
    }
    assert len(set(drawn.values())) == 1
    assert len(drawn["local_loss"]) == 20  # four for each place


@pytest.mark.parametrize("name", NAMES)
def test_impossible_numbers_of_candidates_name_both_numbers(build: Build, name: str) -> None:
    few = build(name, candidates=2)
    with pytest.raises(ConfigError, match=r"selection\.candidates: 2 candidates for a cohort of 3.*at least 3"):
        few.probe(few.init(ROSTER), ROSTER, 3, generator(1))
    with pytest.raises(ConfigError, match=r"selection\.candidates: 5 candidates, but .* only clients = 4"):
        build(name, candidates=5).init(ROSTER)


@pytest.mark.parametrize("name", NAMES)
def test_oversampling_is_rounded_up_and_stops_at_all_clients(build: Build, name: str) -> None:
    for oversampling, size, expected in ((1.0, 3, 3), (1.2, 2, 3), (4.0, 3, 4)):
        selection = build(name, oversampling=oversampling)
        assert len(probed(selection, selection.init(ROSTER), ROSTER, size, generator(1)).candidates) == expected
