"""The parts selections are made of: draws, ranks, coverage, balance, readings."""

import itertools

import numpy as np
import pytest
from selecting import Fits, Reports

from fedloom.core.errors import BadMessage, UsageError
from fedloom.core.records import ClientReport
from fedloom.core.seeds import generator
from fedloom.selection._choosing.balance import divergence, imbalance, total_variation
from fedloom.selection._choosing.coverage import cosine, euclidean, facility_location
from fedloom.selection._choosing.reports import clients_at, largest, losses, numbers, vectors
from fedloom.selection._choosing.sampling import systematic, weighted


def test_a_weighted_draw_without_replacement_is_one_draw_after_another(fits: Fits) -> None:
    weights, draws = np.array([1.0, 2.0, 5.0]), 6000
    rng = generator(1, "weighted")
    seen = [tuple(weighted(np.log(weights), 2, rng).tolist()) for _ in range(draws)]
    pairs = list(itertools.permutations(range(3), 2))
    expected = [weights[a] / 8 * weights[b] / (8 - weights[a]) * draws for a, b in pairs]
    assert fits([seen.count(pair) for pair in pairs], expected)


def test_what_weighs_nothing_is_drawn_last() -> None:
    log_weights = np.array([-np.inf, 0.0, -np.inf, 3.0])
    assert all(set(weighted(log_weights, 2, generator(1, k))) == {1, 3} for k in range(50))


def test_systematic_sampling_keeps_the_size_and_every_probability() -> None:
    inclusion, draws = np.array([1.0, 0.9, 0.05, 0.55, 0.5]), 8000  # adds up to 3
    rng = generator(1, "systematic")
    sets = [systematic(inclusion, rng) for _ in range(draws)]
    assert all(len(picked) == 3 == len(set(picked.tolist())) and 0 in picked for picked in sets)
    shares = np.bincount(np.concatenate(sets), minlength=5) / draws
    assert np.abs(shares - inclusion).max() < 4 * 0.5 / np.sqrt(draws)


def test_ties_keep_their_order_and_what_was_not_reported_comes_last() -> None:
    values = np.array([1.0, np.nan, 3.0, 1.0, 3.0])
    assert largest(values, 5).tolist() == [2, 4, 0, 3, 1]


def test_facility_location_is_greedy_by_the_written_objective() -> None:
    points = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [30.0]])
    apart = euclidean(points)
    assert apart[0].tolist() == [0.0, 1.0, 2.0, 10.0, 11.0, 30.0]
    picked: list[int] = []
    for _ in range(4):
        costs = {j: sum(min(apart[i, s] for s in [*picked, j]) for i in range(6)) for j in range(6) if j not in picked}
        picked.append(min(costs, key=lambda j: (costs[j], j)))
    assert facility_location(apart, 4).tolist() == picked == [2, 5, 3, 0]
    # the first is the medoid (2 + 1 + 0 + 8 + 9 + 28 = 48), the farthest point only comes second


def test_cosine_distance_by_hand() -> None:
    apart = cosine(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert apart[0].tolist() == [0.0, 0.0, 1.0, 2.0, 1.0, 1.0]
    assert apart[4].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_total_variation() -> None:
    assert total_variation([1.0, 0.0], [0.0, 1.0]) == 1.0
    np.testing.assert_allclose(total_variation([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], [0.2, 0.3, 0.5]), [0.5, 0.0])


def test_imbalance_and_divergence_by_hand() -> None:
    pools = np.array([[3.0, 1.0], [2.0, 2.0], [4.0, 0.0], [0.0, 0.0]])
    # (3/4 - 1/2)² + (1/4 - 1/2)² = 1/8; one class alone (1/2)² + (1/2)² = 1/2
    assert imbalance(pools).tolist() == [0.125, 0.0, 0.5, np.inf]
    expected = [0.75 * np.log(1.5) + 0.25 * np.log(0.5), 0.0, np.log(2), np.inf]
    np.testing.assert_allclose(divergence(pools), expected)
    several = generator(1).uniform(size=(4, 10))
    assert imbalance(several).tolist() == imbalance(several[:, generator(2).permutation(10)]).tolist()
    pairs = several[:, :, None] * several[:, None, :]  # the form with inner products: sum_ij n_i n_j q_i.q_j / n² - 1/C
    gram = np.trace(pairs, axis1=1, axis2=2) / several.sum(1) ** 2 - 1 / 10
    np.testing.assert_allclose(imbalance(several), gram)


def test_losses_that_are_not_numbers_are_not_reported(reports: Reports) -> None:
    read = losses(reports([4, 5, 6], [1.5, float("nan"), float("inf")]), "some")
    assert read[0] == 1.5 and np.isnan(read[1:]).all()
    one_silent = [*reports([1], [2.0]), ClientReport(client=2, num_examples=1, seconds=0.0)]
    assert losses(one_silent, "some")[0] == 2.0
    with pytest.raises(
        UsageError, match=r"selection 'some' needs the metric 'loss', but the clients report no metrics"
    ):
        losses(reports([1, 2]), "some")


def test_measured_numbers_are_read_with_care(reports: Reports) -> None:
    read = numbers(reports(range(6), norm=[1, 2.5, "3", True, None, float("inf")]), "norm", "some")
    assert read[:2].tolist() == [1.0, 2.5] and np.isnan(read[2:]).all()
    with pytest.raises(BadMessage, match=r"expects 'norm' in the candidates' reports, but none of 2 has it"):
        numbers(reports([1, 2]), "norm", "some")


def test_measured_lists_of_another_length_are_not_reported(reports: Reports) -> None:
    lists = [[1, 2], [3.0, 4.0], [1.0], "ab", [1.0, "b"], [0.0, float("nan")], None]
    read = vectors(reports(range(7), gain=lists), "gain", "some")
    assert read[:2].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert read.shape == (7, 2) and np.isnan(read[2:]).any(axis=1).all()


def test_what_is_kept_stays_in_candidate_order(reports: Reports) -> None:
    assert clients_at(reports([7, 3, 9, 1]), np.array([3, 0])) == (7, 1)
