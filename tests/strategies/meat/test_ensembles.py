"""Coordinate-wise combinations of snapshots: exact against NumPy, and against planted outliers."""

import itertools

import numpy as np
import pytest

from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.strategies.meat import ensembles
from fedloom.strategies.meat.outliers import EDGES, spread

Snapshot = dict[str, Array]


def history(count: int, seed: int = 0, size: int = 70_001) -> list[Snapshot]:
    """Larger than two blocks, so that blocks end inside an array."""
    rng = generator(seed, "history")
    return [
        {
            "w": rng.normal(size=size).astype(np.float32),
            "b": rng.normal(size=(2, 3)),
            "scalar": np.array(rng.normal(), np.float32),
            "empty": np.zeros((0, 4), np.float32),
            "half": rng.normal(size=5).astype(np.float16),
            "count": np.array(index, np.int64),
        }
        for index in range(count)
    ]


@pytest.mark.parametrize("count", range(1, 9))
def test_the_median_is_numpys_to_the_bit(count: int) -> None:
    snapshots = history(count)
    found = ensembles.median(snapshots, snapshots[0])
    for name in ("w", "b", "scalar", "empty", "half"):
        want = np.median(np.stack([each[name] for each in snapshots]), axis=0).astype(snapshots[0][name].dtype)
        np.testing.assert_array_equal(found[name], want)
        assert found[name].dtype == snapshots[0][name].dtype and found[name].shape == snapshots[0][name].shape
    assert found["count"] == count - 1  # the newest's


def test_the_order_of_snapshots_does_not_matter_to_the_median() -> None:
    snapshots = history(4, size=50)
    want = ensembles.median(snapshots, snapshots[0])
    for order in itertools.permutations(snapshots):
        found = ensembles.median(order, snapshots[0])
        assert all(np.array_equal(found[name], want[name]) for name in ("w", "b", "scalar", "half"))


@pytest.mark.parametrize("count", [3, 4, 7, 8])
@pytest.mark.parametrize("bad", [1e6, -1e6, np.inf])
def test_up_to_half_of_the_snapshots_cannot_move_the_median_out_of_the_others_range(count: int, bad: float) -> None:
    snapshots = history(count, size=200)
    bound = (count - 1) // 2
    clean = np.stack([each["w"] for each in snapshots[bound:]])
    for each in snapshots[:bound]:
        each["w"][:] = bad
    found = ensembles.median(snapshots, snapshots[0])["w"]
    assert (found >= clean.min(0)).all() and (found <= clean.max(0)).all()
    if np.isfinite(bad):
        mean = ensembles.mean(snapshots, snapshots[0])["w"]
        assert ((mean < clean.min(0)) | (mean > clean.max(0))).all()


@pytest.mark.parametrize("count", [4, 7])
def test_at_half_of_the_snapshots_the_guarantee_is_gone(count: int) -> None:
    snapshots = history(count, size=200)
    broken = -(-count // 2)
    for each in snapshots[:broken]:
        each["w"][:] = 1e6
    clean = np.stack([each["w"] for each in snapshots[broken:]])
    assert (ensembles.median(snapshots, snapshots[0])["w"] > clean.max(0)).all()


def test_nan_is_rejected_by_name() -> None:
    snapshots = history(3, size=10)
    snapshots[1]["w"][4] = np.nan
    with pytest.raises(BadUpdate, match=r"'w' of the history contains NaN"):
        ensembles.median(snapshots, snapshots[0])


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_under_monotone_drift_the_median_is_the_middle_snapshot(count: int) -> None:
    rng = generator(3, "drift")
    direction = rng.choice([-1.0, 1.0], size=500)
    path = np.cumsum(np.abs(rng.normal(size=(count, 500))), axis=0) * direction
    snapshots = [{"w": step.astype(np.float32)} for step in path]
    like = snapshots[0]
    found, middle = ensembles.median(snapshots, like)["w"], ensembles.middle(snapshots, like)["w"]
    np.testing.assert_allclose(found, middle, rtol=1e-6)  # an even number: (a + b) / 2 against a / 2 + b / 2
    if count % 2:
        np.testing.assert_array_equal(middle, snapshots[count // 2]["w"])
    if count > 2:
        assert spread(snapshots).monotone == 1.0


def test_means_are_their_formulas() -> None:
    snapshots = history(5, size=100)
    w = np.stack([each["w"] for each in snapshots]).astype(np.float64)
    like = snapshots[0]
    np.testing.assert_allclose(ensembles.mean(snapshots, like)["w"], w.mean(0), rtol=1e-6, atol=1e-7)
    cut = np.sort(w, axis=0)[1:-1].mean(0)
    np.testing.assert_allclose(ensembles.trimmed(snapshots, like, 0.2)["w"], cut, rtol=1e-6, atol=1e-7)
    average = w[0]
    for each in w[1:]:
        average = 0.7 * average + 0.3 * each
    np.testing.assert_allclose(ensembles.moving_average(snapshots, like, 0.7)["w"], average, rtol=1e-5, atol=1e-7)
    kinds = ensembles.combinations(0.2, 0.9)
    np.testing.assert_array_equal(kinds["first"](snapshots, like)["w"], snapshots[0]["w"])
    np.testing.assert_array_equal(kinds["last"](snapshots, like)["w"], snapshots[-1]["w"])


def test_half_precision_takes_half_the_memory_and_costs_a_thousandth() -> None:
    snapshots = [{"w": each["w"]} for each in history(7)]
    kept = [ensembles.stored(each, half=True) for each in snapshots]
    assert sum(each["w"].nbytes for each in kept) * 2 == sum(each["w"].nbytes for each in snapshots)
    whole, half = (ensembles.median(each, snapshots[0])["w"] for each in (snapshots, kept))
    assert half.dtype == np.float32 and 0 < np.abs(whole - half).max() <= 2**-11 * np.abs(whole).max()
    with pytest.raises(BadUpdate, match="beyond 65504"):
        ensembles.stored({"w": np.array([1e5], np.float32)}, half=True)


def test_planted_outliers_have_the_stated_size_and_spare_statistics() -> None:
    arrays: dict[str, Array] = {
        "w": np.full(100_000, -0.5, np.float32),
        "n.running_var": np.ones(3, np.float32),
        "i": np.arange(3),
    }
    found = ensembles.with_outliers(arrays, 3.0, generator(1, "o"))
    assert (found["w"] - arrays["w"]).std() == pytest.approx(3.0 * 0.5, rel=0.02)
    assert found["n.running_var"] is arrays["n.running_var"] and found["i"] is arrays["i"]


def test_the_spread_finds_the_planted_snapshot_and_no_other() -> None:
    rng = generator(2, "spread")
    snapshots = [{"w": rng.normal(1.0, 0.01, 40_000).astype(np.float32)} for _ in range(9)]
    clean = spread(snapshots)
    assert sum(clean.counts) == 9 * 40_000 and len(clean.counts) == len(EDGES) - 1
    # of 9 normal values the middle one is at distance 0, so |z| < 1 more often than a normal value's 68 %
    assert 0.6 < clean.counts[0] / sum(clean.counts) < 0.8
    snapshots[4] = ensembles.with_outliers(snapshots[4], 3.0, rng)
    found = spread(snapshots)
    assert found.outlying[4] > 0.9 and max(share for i, share in enumerate(found.outlying) if i != 4) < 0.1
    assert found.monotone < 0.01
