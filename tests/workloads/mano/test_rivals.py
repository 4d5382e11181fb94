"""The rivals against sums one can do by hand, or against another way to the same number."""

import itertools
import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from fedloom.core.seeds import generator
from fedloom.strategies.mano.monitor.softrun import softmax
from fedloom.strategies.mano.workload import rivals
from fedloom.strategies.mano.workload.inference import ModelOutputs
from fedloom.strategies.mano.workload.scoring import Source, rival_scores

RNG = np.random.default_rng(5)
LOGITS = RNG.normal(0, 2, (30, 4))
SHARES = softmax(LOGITS)


def test_confidence_and_entropy_of_two_samples() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]))
    assert rivals.confidence(softmax(logits)) == pytest.approx([0.5, 1 / 3])
    want = [0.5 * math.log(0.5) + 0.5 * math.log(0.25), -math.log(3)]
    assert rivals.negative_entropy(logits) == pytest.approx(want)


def test_agreement_counts() -> None:
    assert rivals.agreement(np.array([1, 2, 3, 0]), np.array([1, 2, 0, 1])) == 0.5


def test_atc_gives_the_sources_own_accuracy_on_the_source() -> None:
    scores = np.array([0.9, 0.2, 0.7, 0.5, 0.8])
    for correct in itertools.product([True, False], repeat=5):
        right = np.array(correct)
        threshold = rivals.atc_threshold(scores, right)
        assert rivals.atc(scores, threshold) == pytest.approx(right.mean())


def test_the_temperature_has_the_least_cross_entropy() -> None:
    """A grid over T; and the closed form of two classes: a margin m right with share a wants sigmoid(m / T) = a."""
    labels = np.where(RNG.random(30) < 0.6, LOGITS.argmax(1), RNG.integers(0, 4, 30))
    found = rivals.temperature(LOGITS, labels)

    def cross_entropy(t: float) -> float:
        return float(-np.log(softmax(LOGITS / t)[np.arange(30), labels]).mean())

    grid = np.geomspace(0.05, 20, 4001)
    assert found == pytest.approx(grid[np.argmin([cross_entropy(t) for t in grid])], rel=2e-3)
    margin, right = np.tile([[3.0, 0.0]], (10, 1)), np.array([0] * 8 + [1] * 2)
    assert rivals.temperature(margin, right) == pytest.approx(3.0 / math.log(0.8 / 0.2))
    assert rivals.temperature(margin, np.zeros(10, int)) == pytest.approx(0.01)  # nothing wrong: as sharp as allowed


def test_atc_and_cott_are_calibrated_and_cott_knows_the_true_labels() -> None:
    """The steps of COT's released code on a source and a shifted set; its thresholds part the same samples here."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 60)
    logits = 4.0 * np.eye(4)[labels] + rng.normal(0, 3, (60, 4))
    shifted = logits[:40] * 0.5 + rng.normal(0, 1, (40, 4))
    features = rng.normal(size=(60, 3))
    source = Source.of(ModelOutputs(logits, features), labels, np.full(4, 0.25), seed=1)
    t = rivals.temperature(logits, labels)
    assert source.temperature == t and t > 1.2
    wrong = int((logits.argmax(1) != labels).sum())
    assert 5 < wrong < 30
    scaled = softmax(logits / t)
    lower = {
        "atc_mc": np.sort(scaled.max(1))[wrong - 1],
        "atc_ne": np.sort((scaled * np.log(scaled)).sum(1))[wrong - 1],
        "cott": np.sort(-rivals.transport_costs(scaled, labels))[wrong - 1],
    }
    found = rival_scores(ModelOutputs(shifted, features[:40]), None, source, "set")
    test = softmax(shifted / t)
    drawn = rivals.sampled_labels(np.full(4, 0.25), 40, generator(1, "mano", "transport", "set"))
    costs = rivals.transport_costs(test, drawn)
    scores = {"atc_mc": test.max(1), "atc_ne": (test * np.log(test)).sum(1), "cott": -costs}
    between = {"atc_mc": source.confidence, "atc_ne": source.entropy, "cott": source.transport}
    for name, values in scores.items():
        assert between[name] > lower[name]
        ours, theirs = found[name], float((values > lower[name]).mean())
        parted = float(((values > lower[name]) & (values < between[name])).mean())
        assert ours == pytest.approx(theirs - parted)
    assert found["cot"] == pytest.approx(1 - costs.mean())
    assert found["conf_score"] == pytest.approx(softmax(shifted).max(1).mean())  # this one is not calibrated


def test_frechet_is_the_formula_with_a_matrix_root() -> None:
    source, other = RNG.normal(0, 1, (200, 5)), RNG.normal(0.5, 2, (150, 5)) @ RNG.normal(0, 1, (5, 5))
    mu, mu0 = other.mean(0), source.mean(0)
    c, c0 = np.cov(other.T), np.cov(source.T)
    want = ((mu - mu0) ** 2).sum() + np.trace(c + c0 - 2 * np.real(sqrtm(c0 @ c)))
    gaussian = rivals.Gaussian.of(source)
    assert rivals.frechet(other, gaussian) == pytest.approx(-want, rel=1e-6)
    assert rivals.frechet(source, gaussian) == pytest.approx(0.0, abs=1e-8)


def test_dispersion_of_two_clusters_and_of_a_collapse() -> None:
    features = np.array([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0]])
    # mean 4; cluster 0 = (1, 0) twice, cluster 1 = (10, 0): 2 * 9 + 1 * 36 = 54
    assert rivals.dispersion(features, np.array([0, 0, 1]), 3) == pytest.approx(math.log(54 / 2))
    assert math.isfinite(rivals.dispersion(features, np.zeros(3, np.int64), 3))


def test_nuclear_is_one_for_balanced_certainty_and_small_for_a_collapse() -> None:
    balanced = np.eye(4)[np.arange(40) % 4]
    assert rivals.nuclear(balanced) == pytest.approx(1.0)
    collapsed = np.tile(np.eye(4)[:1], (40, 1))
    assert rivals.nuclear(collapsed) == pytest.approx(math.sqrt(40) / math.sqrt(4 * 40))


def test_meta_energy_is_the_mean_log_share_of_energies() -> None:
    energies = [-math.log(sum(math.exp(x) for x in row)) for row in LOGITS.tolist()]
    total = sum(math.exp(e) for e in energies)
    want = -sum(math.log(math.exp(e) / total) for e in energies) / len(energies)
    assert rivals.meta_energy(LOGITS) == pytest.approx(want)


def test_transport_is_the_cheapest_of_all_ways_to_hand_the_labels_out() -> None:
    shares, labels = SHARES[:6], np.array([0, 0, 1, 2, 3, 3])
    cheapest = min(
        sum(0.5 * np.abs(shares[i] - np.eye(4)[labels[j]]).sum() for i, j in enumerate(order))
        for order in itertools.permutations(range(6))
    )
    assert rivals.transport_costs(shares, labels).sum() == pytest.approx(cheapest)


def test_sampled_labels_follow_the_marginal() -> None:
    drawn = rivals.sampled_labels(np.array([0.7, 0.0, 0.3]), 4000, np.random.default_rng(1))
    assert np.bincount(drawn, minlength=3) / 4000 == pytest.approx([0.7, 0.0, 0.3], abs=0.03)
