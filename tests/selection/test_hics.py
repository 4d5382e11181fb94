"""hics: the output layer's change, Ward's clusters, both draws, and rounds by the released code's own steps."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from scipy.stats import entropy as scipy_entropy
from selecting import Build, Examples, Fits, Reports

from fedloom.core.errors import UsageError
from fedloom.core.plugins import build_measure
from fedloom.core.protocols import Roster, Selection
from fedloom.core.records import MODEL, Arrays, Info, Record, Update
from fedloom.core.seeds import generator
from fedloom.selection._choosing.sampling import Floats
from fedloom.selection.hics.clusters import cut, distances, draw_balanced, draw_by_weight, entropies, ward
from fedloom.selection.hics.config import Config

BEFORE = {
    "w0": np.zeros((2, 2), np.float32),
    "w": np.array([[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]], np.float32),
    "b": np.array([0.0, 1.0, 2.0], np.float32),
}
AFTER = {**BEFORE, "w": BEFORE["w"] + np.array([[3, 0], [0, -4], [0, 0]], np.float32), "b": BEFORE["b"] + 12}


def measured(after: Arrays = AFTER, before: Arrays = BEFORE, array: str | None = None) -> Info:
    update = Update(num_examples=3, groups={MODEL: after})
    return build_measure("hics")(None, Record({MODEL: before}), update, Examples(3), generator(1), {"array": array})


def test_it_reports_the_last_layers_weights_and_bias() -> None:
    assert measured() == {"weights": [3.0, 0.0, 0.0, -4.0, 0.0, 0.0], "bias": [12.0] * 3, "classes": 3.0}
    assert measured(array="w0") == {"weights": [0.0] * 4, "bias": [], "classes": 2.0}
    vector = {"w": np.arange(3.0)}
    assert measured({"w": np.arange(3.0) + 1}, vector) == {"weights": [1.0] * 3, "bias": [], "classes": 3.0}
    with pytest.raises(
        UsageError, match=r"from array 'head', but the trained arrays with classes are \['b', 'w', 'w0'"
    ):
        measured(array="head")


def test_the_defaults_are_those_of_the_released_configurations() -> None:
    made = Config()
    assert (made.temperature, made.entropy_weight, made.preference, made.horizon) == (0.001, 10.0, 4.0, 200)
    assert made.most_variance == 0.1


def test_entropies_are_those_of_the_softmax_at_the_temperature() -> None:
    changes = np.array([[1.0, 1.0], [1.0, 0.0], [2.0, 0.0], [900.0, 0.0]])
    shares = [np.exp(row / 0.5) / np.exp(row / 0.5).sum() for row in changes[:3]]
    want = np.array([*(-(row * np.log(row)).sum() for row in shares), 0.0])
    np.testing.assert_allclose(entropies(changes, 0.5), want, atol=1e-12)


def test_distances_add_angle_and_entropy() -> None:
    layers = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    apart = distances(layers, np.array([0.1, 0.1, 0.6, 0.1]), entropy_weight=2.0)
    half = np.pi / 2
    want = np.array([[0, half, 1, 0], [half, 0, half + 1, 0], [1, half + 1, 0, 1], [0, 0, 1, 0]])  # no change: no angle
    np.testing.assert_allclose(apart, want, atol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_wards_clusters_are_scipys(seed: int) -> None:
    points = generator(seed, "points").normal(size=(14, 5))
    tree = ward(points)
    theirs = linkage(points, "ward")
    assert [tuple(sorted(pair)) for pair in tree] == [tuple(sorted(map(int, row[:2]))) for row in theirs]
    for count in (1, 4, 14):
        labels = fcluster(theirs, count, "maxclust")
        assert cut(tree, count) == sorted(np.flatnonzero(labels == label).tolist() for label in set(labels))


def test_balanced_clusters_are_preferred_and_members_are_not(fits: Fits) -> None:
    groups, logarithms = [[0, 1], [2], [3]], np.array([0.6, 2.6, 0.0])
    rng, draws = generator(1, "clusters"), 6000
    seen = Counter(int(draw_balanced(groups, logarithms, 1, rng)[0]) for _ in range(draws))
    p = np.exp(logarithms) / np.exp(logarithms).sum()
    assert fits([seen[k] for k in range(4)], draws * np.array([p[0] / 2, p[0] / 2, p[1], p[2]]))
    assert sorted(draw_balanced(groups, np.array([0.0, 2000.0, 0.0]), 4, rng).tolist()) == [0, 1, 2, 3]


def test_rows_of_equal_weight_by_hand(fits: Fits) -> None:
    """Clients 0 and 1 merge first, then 2 and 3, then 4 to these. Weights .1, .1, .3, .1, .4 and three rows of 1/3.

    Merged while at most 1/3: {0, 1} of .2. So the clusters are {0, 1}: .2, {2}: .3, {3}: .1 and {4}, which weighs more
    than 1/3 and has a place. Then .6 is left for two rows: {2} is one, {0, 1} the other, which {3} fills up.
    """
    tree = [(0, 1), (2, 3), (4, 6), (5, 7)]
    weights = np.array([0.1, 0.1, 0.3, 0.1, 0.4])
    rng, draws = generator(1, "rows"), 3000
    drawn = [draw_by_weight(tree, weights, 3, rng).tolist() for _ in range(draws)]
    assert all(4 in each and 2 in each and len(set(each)) == 3 for each in drawn)
    third = Counter(next(iter(set(each) - {2, 4})) for each in drawn)
    assert fits([third[0], third[1], third[3]], [draws / 3] * 3)


def test_a_client_in_two_rows_is_chosen_once() -> None:
    weights = np.full(5, 0.2)
    for seed in range(200):
        rng = generator(seed, "two rows")
        picked = draw_by_weight(ward(np.arange(5.0)[:, None] ** 2), weights, 3, rng)
        assert len(set(picked.tolist())) == 3
    assert sorted(draw_by_weight([(0, 1), (2, 3)], np.array([0.98, 0.01, 0.01]), 3, generator(1)).tolist()) == [0, 1, 2]


ROSTER = Roster(population=7, sizes=(10, 20, 30, 40, 50, 60, 70))


def layer(client: int, shift: float = 0.0) -> tuple[Floats, Floats]:
    """A change of weights (3, 4) and bias: clients 0 to 3 move one class, the others all of them."""
    rng = generator(client, "layer")
    weights = 1e-4 * rng.normal(size=(3, 4)) + shift
    weights[client % 3] += 2e-3 if client < 4 else 0.0
    return weights, 1e-4 * rng.normal(size=3)


def after_warm_up(selection: Selection[Any], reports: Reports) -> Any:
    state = selection.init(ROSTER)
    for round in range(3):  # int(7 / 2) rounds, in order; client 6 is left out
        cohort = selection.choose(state, ROSTER, 2, generator(round))
        assert cohort == (2 * round, 2 * round + 1)
        layers = [layer(client) for client in cohort]
        state = selection.observe(
            state,
            reports(
                list(cohort),
                weights=[w.reshape(-1).tolist() for w, _ in layers],
                bias=[b.tolist() for _, b in layers],
                classes=[3.0] * 2,
            ),
        )
    return state


def test_a_round_follows_the_released_code(build: Build, reports: Reports, fits: Fits) -> None:
    """Its steps: mean over inputs, softmax at T, entropy, angle + 10 |dH|, Ward on rows, exp(4 (200 - t) / 200 H)."""
    selection = build("hics", clusters=3, most_variance=10.0)
    state = after_warm_up(selection, reports)
    layers = [layer(client) for client in range(6)] + [(np.zeros((3, 4)), np.zeros(3))]  # client 6 is still unknown
    magnitudes = [np.exp(w.sum(axis=1) / 4 / 0.001) for w, _ in layers]
    h = [scipy_entropy(each / each.sum()) for each in magnitudes]
    assert h[6] == pytest.approx(np.log(3))
    flat = [np.concatenate([w.reshape(-1), b]) for w, b in layers]
    apart = np.zeros((7, 7))
    for i in range(7):
        for j in range(7):
            lengths = np.linalg.norm(flat[i]) * np.linalg.norm(flat[j])
            angle = np.arccos(min(1.0, flat[i] @ flat[j] / lengths)) if lengths and i != j else 0.0
            apart[i, j] = angle + 10 * abs(h[i] - h[j])
    labels = fcluster(linkage(pdist(apart), "ward"), 3, "maxclust")  # its rows as points, as the code passes them
    groups = sorted(np.flatnonzero(labels == label).tolist() for label in set(labels))
    assert len(groups) == 3
    weights = np.exp([4 * (200 - 3) / 200 * np.mean([h[k] for k in group]) for group in groups])
    assert_drawn(selection, state, groups, weights, fits)


def assert_drawn(
    selection: Selection[Any], state: Any, groups: list[list[int]], weights: Floats, fits: Fits, draws: int = 1500
) -> None:
    """Cohorts of two: a cluster in proportion to its weight, then another draw among those with members left."""
    rng, seen = generator(1, "rounds"), Counter[tuple[int, ...]]()
    for _ in range(draws):
        cohort = selection.choose(state, ROSTER, 2, rng)
        seen[tuple(sorted(next(i for i, group in enumerate(groups) if k in group) for k in cohort))] += 1
    p, want = weights / weights.sum(), dict[tuple[int, ...], float]()
    for first, group in enumerate(groups):
        left = np.where(np.arange(len(p)) == first, p * (len(group) > 1), p)
        for second in range(len(groups)):
            place = tuple(sorted((first, second)))
            want[place] = want.get(place, 0.0) + float(p[first] * left[second] / left.sum())
    places = [place for place in want if want[place] > 0]
    assert set(seen) <= set(places)
    assert fits([seen[place] for place in places], draws * np.array([want[place] for place in places]))


def test_entropies_that_vary_much_are_sampled_by_weight(build: Build, reports: Reports) -> None:
    selection = build("hics", temperature=0.0003)
    state = after_warm_up(selection, reports)
    weights = state.weights.reshape(7, 3, 4).mean(axis=2)
    assert entropies(weights, 0.0003).var() >= 0.1
    rng, draws = generator(1, "weights"), 1000
    seen = Counter(client for _ in range(draws) for client in selection.choose(state, ROSTER, 2, rng))
    # Each client is in the cohort 2 p_k times on average, but for one drawn twice, which makes way for another.
    shares = np.array([seen[k] for k in range(7)]) / draws
    np.testing.assert_allclose(shares, 2 * np.array(ROSTER.sizes) / 280, atol=0.1)


def test_the_preference_fades_with_the_rounds(build: Build, reports: Reports, fits: Fits) -> None:
    selection = build("hics", clusters=3, most_variance=10.0, horizon=3)  # after three rounds nothing is preferred
    state = after_warm_up(selection, reports)
    entropy = entropies(state.weights.reshape(7, 3, 4).mean(axis=2), 0.001)
    groups = cut(ward(distances(np.hstack([state.weights, state.bias]), entropy, 10.0)), 3)
    assert_drawn(selection, state, groups, np.ones(3), fits)


def test_changes_are_replaced_or_kept_as_asked(build: Build, reports: Reports) -> None:
    for refresh in (True, False):
        selection = build("hics", refresh=refresh)
        state = after_warm_up(selection, reports)
        told = reports([0, 6], weights=[[1.0] * 12] * 2, bias=[[1.0] * 3] * 2, classes=[3.0] * 2)
        after = selection.observe(state, told)
        assert (after.weights[0] == 1.0).all() == refresh
        assert (after.weights[6] == 1.0).all() and after.known.all()
        odd = reports([0, 1], weights=[[2.0] * 11, [float("nan")] * 12], bias=[[2.0] * 3] * 2, classes=[3.0] * 2)
        np.testing.assert_array_equal(selection.observe(after, odd).weights, after.weights)


def test_clients_without_examples_are_not_chosen(build: Build) -> None:
    selection, roster = build("hics"), Roster(population=5, sizes=(0, 3, 0, 4, 5))
    state = selection.init(roster)
    assert selection.choose(state, roster, 2, generator(1)) == (1, 3)
    assert set(selection.choose(state, roster, 4, generator(1))) <= set(range(5))
