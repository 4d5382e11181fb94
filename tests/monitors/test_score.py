"""The score's exact properties: each against numbers derived here."""

import math

import numpy as np
import pytest

from fedloom.strategies.mano.monitor.score import Sums, batch_mean, choose, span
from fedloom.strategies.mano.monitor.softrun import Branch, log_softmax, softmax, softrun, taylor

BRANCHES: tuple[Branch, ...] = ("softmax", "taylor")


def logits(samples: int = 40, classes: int = 10, scale: float = 3.0, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, scale, (samples, classes))


def direct(q: np.ndarray, branch: Branch, power: float = 4) -> float:
    """The paper's formula, row by row in plain Python."""
    total = 0.0
    for row in q.tolist():
        v = [math.exp(x) for x in row] if branch == "softmax" else [1 + x + x * x / 2 for x in row]
        if branch == "taylor":
            v = [x - min(v) for x in v]
        total += sum(abs(x / sum(v)) ** power for x in v)
    return float((total / q.size) ** (1 / power))


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_score_is_the_papers_formula(branch: Branch) -> None:
    q = logits()
    for power in (2, 4, 6):
        assert Sums.of(q, power=power).score(branch) == pytest.approx(direct(q, branch, power), abs=1e-12)


def test_uniform_and_one_hot_rows_give_the_ends_of_the_span() -> None:
    for classes in (2, 10, 149):
        flat, sure = np.full((7, classes), 0.3), np.zeros((7, classes))
        sure[:, 1] = 800.0
        low, high = span(classes)
        for branch in BRANCHES:
            assert Sums.of(flat).score(branch) == pytest.approx(low, abs=1e-9)
        assert Sums.of(sure).score("softmax") == pytest.approx(high, abs=1e-9)
        assert (low, high) == pytest.approx((1 / classes, classes**-0.25), abs=1e-12)
        assert Sums.of(flat).criterion == pytest.approx(math.log(classes), abs=1e-9)


def test_p_of_one_is_constant() -> None:
    assert Sums.of(logits(), power=1).score("softmax") == pytest.approx(0.1, abs=1e-12)


def test_a_constant_added_to_the_logits_moves_taylor_only() -> None:
    q = logits()
    before, after = Sums.of(q), Sums.of(q + 2.5)
    assert after.score("softmax") == pytest.approx(before.score("softmax"), abs=1e-9)
    assert after.criterion == pytest.approx(before.criterion, abs=1e-9)
    assert abs(after.score("taylor") - before.score("taylor")) > 1e-3


@pytest.mark.parametrize("branch", BRANCHES)
def test_neither_order_nor_duplication_matters(branch: Branch) -> None:
    q = logits()
    want = Sums.of(q).score(branch)
    assert Sums.of(q[::-1]).score(branch) == pytest.approx(want, abs=1e-9)
    assert Sums.of(np.concatenate([q, q])).score(branch) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("power", [2, 3, 4, 6])
def test_the_tsallis_identity(branch: Branch, power: int) -> None:
    q = logits()
    shares = softrun(q, branch)
    entropy = (1 - (shares**power).sum(1)) / (power * (power - 1))
    right = 1 / 10 - power * (power - 1) / 10 * entropy.mean()
    assert Sums.of(q, power=power).score(branch) ** power == pytest.approx(right, abs=1e-12)


def test_the_bound_on_what_biased_logits_cost_softmax() -> None:
    rng = np.random.default_rng(3)
    true, bias = rng.normal(0, 2, (10_000, 6)), rng.normal(0, 1.5, (10_000, 6))
    p = softmax(true)
    divergence = (p * (log_softmax(true) - log_softmax(true + bias))).sum(1)
    assert divergence.min() >= -1e-12
    assert np.all(divergence <= (p * (bias.max(1, keepdims=True) - bias)).sum(1) + 1e-12)


def test_the_criterion_is_never_below_ln_k_and_taylor_is_out_of_reach_for_many_classes() -> None:
    for scale in (0.0, 0.01, 1.0, 30.0):
        for classes in (2, 10, 149):
            phi = Sums.of(logits(classes=classes, scale=scale)).criterion
            assert phi >= math.log(classes) - 1e-12
    assert choose(math.log(149), 149) == "softmax" and choose(math.log(148), 148) == "taylor"
    assert choose(math.log(149), 149, kind="kl") == "taylor"


def test_the_least_and_the_greatest_value_at_the_threshold() -> None:
    assert choose(5.0, 10) == "taylor" and choose(5.0 + 1e-9, 10) == "softmax"
    assert choose(3.0, 10, eta=1.0) == "softmax"


def test_sums_of_any_parts_give_the_value_of_the_whole() -> None:
    q = logits(997)
    whole = Sums.of(q)
    for cuts in ([500], [1, 2, 3, 990], list(range(7, 997, 31))):
        parts = [Sums.of(part) for part in np.split(q, cuts)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        assert total.samples == 997
        assert total.criterion == pytest.approx(whole.criterion, abs=1e-9)
        for branch in BRANCHES:
            assert total.score(branch) == pytest.approx(whole.score(branch), abs=1e-9)
    reported = Sums.from_json(whole.to_json(), samples=997, classes=10)
    assert reported == whole


def test_the_released_mean_over_batches_is_never_above_the_whole_set() -> None:
    q = np.concatenate([logits(128, scale=0.1), logits(128, scale=9.0)])
    for branch in BRANCHES:
        whole = Sums.of(q).score(branch)
        assert batch_mean(q, branch) < whole - 1e-3
        assert batch_mean(q, branch, batch_size=256) == pytest.approx(whole, abs=1e-12)


def test_orders_are_factorials_and_order_two_is_positive_without_the_shift() -> None:
    q = np.array([[0.5, -1.0, 2.0]])
    v = [1 + x + x**2 / 2 + x**3 / 6 for x in q[0]]
    v = [x - min(v) for x in v]
    assert taylor(q, order=3)[0] == pytest.approx([x / sum(v) for x in v], abs=1e-12)
    plain = taylor(logits(scale=20.0), row_min=False)
    assert plain.min() > 0 and plain.sum(1) == pytest.approx(np.ones(40))
    assert taylor(np.array([[-5.0, 0.0]]), row_min=False)[0, 0] > 0.89  # not monotone: q = -5 weighs more than q = 0


def test_a_row_of_equal_logits_is_uniform_in_both_branches() -> None:
    for branch in BRANCHES:
        assert softrun(np.full((1, 4), -3.0), branch)[0] == pytest.approx([0.25] * 4)
