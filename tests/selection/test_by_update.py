"""update_norm, optimal_sampling, divfl: what candidates tell of their update, and what is made of it."""

from collections import Counter

import numpy as np
import pytest
from selecting import Build, Examples, Reports, probed

from fedloom.core.errors import UsageError
from fedloom.core.plugins import build_measure
from fedloom.core.protocols import Roster
from fedloom.core.records import MODEL, Arrays, Info, Record, Update
from fedloom.core.seeds import generator
from fedloom.selection.divfl.measure import sketched
from fedloom.selection.optimal_sampling.selection import inclusion_probabilities

ROSTER = Roster(population=6)
BEFORE = {"w": np.array([[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]], np.float32), "b": np.array([0.0, 1.0, 2.0], np.float32)}
AFTER = {"w": np.array([[4.0, 2.0], [0.0, -4.0], [5.0, 5.0]], np.float32), "b": np.array([0.0, 13.0, 2.0], np.float32)}
COUNTER = {"steps": np.array(7)}


def measured(name: str, after: Arrays = AFTER, **knobs: object) -> Info:
    measure = build_measure(name)
    update = Update(num_examples=3, groups={MODEL: {**after, "steps": np.array(9)}})
    return measure(None, Record({MODEL: {**BEFORE, **COUNTER}}), update, Examples(3), generator(1), knobs)


def test_the_update_norm_is_that_of_all_trained_arrays_together() -> None:
    assert measured("update_norm") == {"norm": 13.0}  # sqrt(3² + 4² + 12²); the counter is not trained


@pytest.mark.parametrize("name", ["update_norm", "divfl", "hics"])
def test_an_update_without_the_models_arrays_has_no_change(name: str) -> None:
    with pytest.raises(UsageError, match=r"the update has arrays \['lora', 'steps'\] and the global model \['b', 's"):
        measured(name, after={"lora": np.zeros(2)}, sketch=0, array=None)


def test_update_norm_keeps_the_largest(build: Build, reports: Reports) -> None:
    selection = build("update_norm")
    reported = reports([5, 0, 3, 1], norm=[1.0, 9.0, float("nan"), 4.0])
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (0, 1)


@pytest.mark.parametrize(
    ("norms", "size", "expected"),
    [
        ([1, 1, 2, 4], 2, [0.25, 0.25, 0.5, 1.0]),
        ([1, 1, 2, 12], 2, [0.25, 0.25, 0.5, 1.0]),  # 12 alone would be 1.5: capped, one place left for 1 : 1 : 2
        ([1, 8, 10, 1], 3, [0.5, 1.0, 1.0, 0.5]),  # the second is over 1 only after the first was capped
        ([0, 0, 3, 0], 2, [1 / 3, 1 / 3, 1.0, 1 / 3]),
        ([0, 0], 1, [0.5, 0.5]),
        ([5, 1], 2, [1.0, 1.0]),
    ],
)
def test_inclusion_probabilities_by_hand(norms: list[int], size: int, expected: list[float]) -> None:
    np.testing.assert_allclose(inclusion_probabilities(np.array(norms, float), size), expected)


def test_inclusion_probabilities_are_the_papers_closed_form() -> None:
    u, m = generator(1, "norms").exponential(size=12) ** 2, 5
    order, n = np.sort(u), 12
    fitting = [k for k in range(n - m + 1, n + 1) if 0 < m + k - n <= order[:k].sum() / order[k - 1]]
    k = max(fitting)  # Algorithm 1: the largest number of uncapped clients
    expected = np.where(u <= order[k - 1], (m + k - n) * u / order[:k].sum(), 1.0)
    assert (expected == 1.0).any() and (expected < 1.0).any()
    np.testing.assert_allclose(inclusion_probabilities(u, m), expected)


def test_optimal_sampling_weighs_norms_by_examples(build: Build, reports: Reports) -> None:
    selection, rng, draws = build("optimal_sampling"), generator(1, "draws"), 6000
    reported = reports([4, 0, 2], norm=[1.0, 2.0, 1.0], examples=[10, 10, 40])  # u = 1 : 2 : 4
    seen = Counter(selection.choose(selection.init(ROSTER), ROSTER, 1, rng, reported)[0] for _ in range(draws))
    shares = np.array([seen[4], seen[0], seen[2]]) / draws
    np.testing.assert_allclose(shares, np.array([1, 2, 4]) / 7, atol=4 * 0.5 / np.sqrt(draws))
    assert probed(selection, selection.init(ROSTER), ROSTER, 1, rng).measure == "update_norm"


def test_divfl_takes_a_representative_of_each_kind(build: Build, reports: Reports) -> None:
    selection = build("divfl")
    reported = reports([5, 0, 3, 1, 2], update=[[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0], [0.0, 2.0]])
    assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(1), reported) == (3, 2)
    # (0, 2) has the smallest sum of distances, 25.2; then one of the far pair, the first
    reported = reports([5, 0, 3], update=[[1.0, 0.0], None, [0.0, 1.0]])
    assert selection.choose(selection.init(ROSTER), ROSTER, 3, generator(1), reported) == (5, 0, 3)


def test_divfl_sends_the_whole_update_or_a_sketch_that_keeps_distances() -> None:
    exact = [3.0, 0.0, 0.0, -4.0, 0.0, 0.0, 0.0, 12.0, 0.0]
    assert measured("divfl", sketch=0) == measured("divfl", sketch=9) == {"update": exact}
    short = measured("divfl", sketch=4)["update"]
    assert len(short) == 4 and short == measured("divfl", sketch=4)["update"]
    rng = generator(1, "vectors")
    errors = []
    for k in range(200):
        vector = rng.normal(size=(20, 50))
        errors.append((sketched(f"w{k}", vector, 256) ** 2).sum() / (vector**2).sum() - 1)
    assert abs(np.mean(errors)) < 4 * np.sqrt(2 / 256 / 200)
    assert np.std(errors) < 1.3 * np.sqrt(2 / 256)
    a, b = rng.normal(size=(2, 1000))
    np.testing.assert_allclose(sketched("w", a, 64) - sketched("w", b, 64), sketched("w", a - b, 64), atol=1e-12)
