"""Rules on scores against small tables worked out by hand: exits, calibration, the learned criterion, the trade-off."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from fedloom.core.records import Array
from fedloom.workloads.hubert_ee.exits import CRITERIA, SCORES, Rule, Table, bounds, calibrated, first_above, fit_gate
from fedloom.workloads.hubert_ee.trade_off import Conditions, trade_off


def table(entropy: list[list[float]], errors: list[list[float]], words: float = 2.0) -> Table:
    """Utterances with these entropies at branches, and word errors at exits."""
    h = np.array(entropy)
    scores = np.stack([h, 1.0 - h, h, 2.0 * h, np.full_like(h, 0.5)], axis=2)
    agreeing = np.tile(np.arange(1, h.shape[1] + 1), (len(h), 1))
    return Table(scores, np.array(errors), np.full(len(h), words), agreeing)


EASY = table([[0.01, 0.01], [0.03, 0.01], [0.05, 0.04], [0.02, 0.02]], [[0, 0, 0], [1, 0, 0], [2, 1, 1], [0, 0, 0]])


def test_exits_of_every_criterion() -> None:
    assert Rule("entropy", 0.02).exits(EASY).tolist() == [0, 1, 2, 2]  # below, not at the threshold
    assert Rule("entropy", 0.0).exits(EASY).tolist() == [2] * 4
    assert Rule("confidence", 0.975).exits(EASY).tolist() == [0, 1, 2, 0]
    assert Rule("patience", 2).exits(EASY).tolist() == [1] * 4
    assert Rule("patience", 3).exits(EASY).tolist() == [2] * 4
    with pytest.raises(ValueError, match="needs its gate"):
        Rule("learned", 0.5).exits(EASY)


def test_rates_are_of_the_whole_set() -> None:
    assert EASY.full_rate == 1 / 8 and EASY.rate(np.array([0, 0, 0, 0])) == 3 / 8
    assert EASY.rate(np.array([0, 1, 2, 0])) == 1 / 8


def brute(name: str, dev: Table, allowed: float) -> float:
    """The least mean exit of all thresholds that stay within the allowed error rate."""
    certainties = Rule(name, 0.0, fit_gate(dev)).certainties(dev)
    values = [*np.unique(certainties).tolist(), math.inf]
    found = [first_above(certainties, value - 1e-9 if math.isfinite(value) else value) for value in values]
    return min(float(exits.mean()) for exits in found if dev.rate(exits) <= allowed + 1e-12)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 3.0])
def test_a_calibrated_threshold_leaves_as_early_as_the_tolerance_allows(name: str, tolerance: float) -> None:
    gate = fit_gate(EASY)
    rule = calibrated(name, EASY, tolerance, gate)
    exits = rule.exits(EASY)
    allowed = EASY.full_rate * (1 + tolerance)
    assert EASY.rate(exits) <= allowed + 1e-12
    assert float(exits.mean()) == brute(name, EASY, allowed)


def test_a_calibrated_threshold_by_hand() -> None:
    # leaving at 0.01 and 0.02 costs nothing, at 0.03 one error more: S lies between 0.02 and 0.03
    rule = calibrated("entropy", EASY, 0.0)
    assert 0.02 < rule.threshold <= 0.03 and rule.exits(EASY).tolist() == [0, 1, 2, 0]
    assert calibrated("entropy", EASY, 99.0).exits(EASY).tolist() == [0] * 4
    worse = table([[0.01], [0.01]], [[2, 0], [2, 0]])
    assert calibrated("entropy", worse, 0.1).exits(worse).tolist() == [1, 1]  # nothing but the final head is allowed
    assert all(calibrated(name, worse, 0.1, fit_gate(worse)).exits(worse).tolist() == [1, 1] for name in CRITERIA)


def test_bounds_separate_all_values() -> None:
    found = bounds(np.array([[3.0, 1.0], [1.0, 2.0]]))
    assert found.tolist() == [0.0, 1.5, 2.5]
    exits = [first_above(np.array([[3.0, 1.0], [1.0, 2.0]]), bound).tolist() for bound in (0.0, 1.5, 2.5, math.inf)]
    assert exits == [[0, 0], [0, 1], [0, 2], [2, 2]]


def test_the_learned_criterion_is_the_minimum_of_its_penalised_loss() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    h = rng.uniform(0.0, 0.1, (80, 1))
    right = (h[:, 0] + rng.normal(0.0, 0.02, 80)) < 0.05
    dev = table(h.tolist(), np.stack([~right, np.zeros(80)], 1).tolist())
    gate = fit_gate(dev)
    x = np.hstack([(dev.scores[:, 0] - gate.mean[0]) / gate.deviation[0], np.ones((80, 1))])
    penalty = np.array([1.0] * len(SCORES) + [1e-3])

    def loss(w: Array) -> float:
        z = x @ w
        return float((np.log1p(np.exp(z)) - right * z).sum() + 0.5 * (penalty * w * w).sum())

    best = loss(gate.weights[0])
    for place, step in itertools.product(range(len(penalty)), (-1e-3, 1e-3)):
        moved = gate.weights[0].copy()
        moved[place] += step
        assert loss(moved) > best
    assert gate.chance(0, dev.scores[h[:, 0].argmin(), 0]) > 0.9 > 0.1 > gate.chance(0, dev.scores[h[:, 0].argmax(), 0])


@dataclass(frozen=True)
class Read:
    """Utterances with transcripts."""

    table: Table
    texts: tuple[tuple[str, ...], ...]


def test_the_trade_off_by_hand() -> None:
    texts = (("a", "a", "a"), ("b", "a", "a"), ("c", "b", "b"), ("a", "a", "a"))
    seconds = np.tile([1.0, 2.0, 3.5, 3.0], (4, 1))  # to each exit, and without branches
    rule = Rule("entropy", 0.025)
    noise = np.array([40.0, 20.0, 10.0, 40.0])
    conditions = Conditions(points=5, tolerance=0.0, noise_db=noise, seconds=seconds)
    found = trade_off(Read(EASY, texts), EASY, rule, (2, 4, 6), conditions)
    assert found["left"] == [0.5, 0.25, 0.25] and found["mean_exit_layer"] == (2 + 4 + 6 + 2) / 4
    assert found["wer"] == 1 / 8 and found["wer_exits"] == [3 / 8, 1 / 8, 1 / 8]
    assert found["oracle"] == {"mean_exit_layer": (2 + 4 + 4 + 2) / 4, "wer": 1 / 8}
    # the same exits in every order: the mean over all 24 of the errors at them, over 8 words
    exits = rule.exits(EASY)
    orders = [EASY.rate(np.array(order)) for order in itertools.permutations(exits.tolist())]
    assert found["random"]["wer"] == pytest.approx(np.mean(orders), abs=0.01)
    assert found["random"]["p"] == pytest.approx(np.mean([rate <= 1 / 8 for rate in orders]), abs=0.05)
    # first branch: equal to the final text in rows 0 and 3, whose entropies are the two lowest
    assert found["auroc"] == [1.0, None]
    entropy = found["calibrated"]["entropy"]
    assert 0.02 < entropy["threshold"] <= 0.03 and entropy["wer"] == 1 / 8
    assert entropy["saved_share"] == pytest.approx(1 - (1 + 2 + 3.5 + 1) / 4 / 3)
    assert found["noise"]["spearman"] == pytest.approx(1.0)
    assert found["saved_share"] == pytest.approx(1 - (1 + 2 + 3.5 + 1) / 4 / 3) and found["wer_increase"] == 0.0
    for points in found["curves"].values():
        layers = [point[1] for point in points]
        assert layers[0] == 2.0 and layers[-1] == 6.0 and layers == sorted(layers)
        assert points[0][2] == 3 / 8 and points[-1][2] == 1 / 8 and points[0][3] == 1.0 and points[-1][3] == 3.5
    json.dumps(found, allow_nan=False)


def test_a_trade_off_without_noise_or_time_says_nothing_of_them() -> None:
    texts = (("a", "a", "a"),) * 4
    unknown = np.full(4, math.nan)
    conditions = Conditions(points=3, tolerance=0.1, noise_db=unknown)
    found = trade_off(Read(EASY, texts), EASY, Rule("entropy", 0.0), (2, 4, 6), conditions)
    assert "noise" not in found and "saved_share" not in found and found["auroc"] == [None, None]
    json.dumps(found, allow_nan=False)
