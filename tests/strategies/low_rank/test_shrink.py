"""Cutting factors, against whole matrices."""

import numpy as np
import pytest
import torch
from torch import nn

from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.shrink import (
    Components,
    Operator,
    grown,
    ordered,
    ranks_by_importance,
    uniform_ranks,
)
from fedloom.workloads._adapters.layers import attach

OPERATORS: tuple[Operator, ...] = ("svd", "slice", "score", "fold")


def pair(rank: int = 6, out: int = 12, in_: int = 9, seed: int = 1) -> tuple[Array, Array]:
    rng = generator(seed, "pair")
    return rng.standard_normal((rank, in_)).astype(np.float32), rng.standard_normal((out, rank)).astype(np.float32)


def cut(a: Array, b: Array, operator: Operator, rank: int) -> Array:
    first_a, first_b = ordered(a, b, operator).first(rank)
    return first_b.astype(np.float64) @ first_a


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_svd_loses_the_smallest_singular_values_and_nothing_else(rank: int) -> None:
    a, b = pair()
    whole = b.astype(np.float64) @ a
    lost = {operator: ((whole - cut(a, b, operator, rank)) ** 2).sum() for operator in OPERATORS}
    sigma = np.linalg.svd(whole, compute_uv=False)
    assert lost["svd"] == pytest.approx((sigma[rank:6] ** 2).sum(), rel=1e-5)
    assert lost["svd"] == lost["fold"] and lost["svd"] <= min(lost["slice"], lost["score"])


def test_a_product_of_small_rank_is_cut_without_a_change() -> None:
    a, b = pair()
    b[:, 4:] = b[:, :2] @ np.array([[1.0, 2.0], [0.5, -1.0]], np.float32)  # B A has rank 4
    np.testing.assert_allclose(cut(a, b, "svd", 4), b.astype(np.float64) @ a, atol=1e-5)


def test_the_basis_inside_the_factors_does_not_matter_and_signs_are_fixed() -> None:
    a, b = pair()
    turn = np.linalg.qr(generator(2, "turn").standard_normal((6, 6)))[0].astype(np.float32)
    first, second = ordered(a, b, "svd"), ordered(turn.T @ a, b @ turn, "svd")
    np.testing.assert_allclose(first.a, second.a, atol=1e-4)
    np.testing.assert_allclose(first.b, second.b, atol=1e-4)
    assert (first.b[np.abs(first.b).argmax(axis=0), np.arange(6)] > 0).all()
    np.testing.assert_allclose(first.a @ first.a.T, np.eye(6), atol=1e-5)  # the split is asymmetric: A is orthonormal
    np.testing.assert_allclose(np.linalg.norm(first.b, axis=0), first.scores, rtol=1e-5)


def test_score_keeps_the_largest_components_and_slice_the_first() -> None:
    a, b = pair()
    norms = np.linalg.norm(b, axis=0) * np.linalg.norm(a, axis=1)
    best = np.sort(np.argsort(-norms)[:2])
    kept_a, kept_b = ordered(a, b, "score").first(2)
    assert {tuple(row) for row in kept_a} == {tuple(a[index]) for index in best}
    np.testing.assert_allclose(kept_b @ kept_a, b[:, best] @ a[best], rtol=1e-5)
    kept_a, kept_b = ordered(a, b, "slice").first(2)
    assert np.array_equal(kept_a, a[:2]) and np.array_equal(kept_b, b[:, :2])


def test_what_is_kept_and_what_is_left_are_the_whole() -> None:
    a, b = pair()
    components = ordered(a, b, "fold")
    (a1, b1), (a2, b2) = components.first(2), components.rest(2)
    np.testing.assert_allclose(b1 @ a1 + b2 @ a2, b @ a, atol=1e-4)


def test_growing_changes_nothing_yet() -> None:
    a, b = pair()
    fresh, _ = pair(rank=8, seed=3)
    more_a, more_b = grown(a, b, fresh)
    assert np.array_equal(more_b @ more_a, np.concatenate([b, np.zeros((12, 2), np.float32)], 1) @ more_a)
    assert np.array_equal(more_a[:6], a) and np.array_equal(more_a[6:], fresh[6:]) and not more_b[:, 6:].any()


def symmetric(a: Array, b: Array, rank: int) -> tuple[Array, Array]:
    """The mutation: singular values shared evenly, as √Σ on both sides."""
    u, sigma, vt = np.linalg.svd(b @ a, full_matrices=False)
    root = np.sqrt(sigma[:rank])
    return (root[:, None] * vt[:rank]).astype(np.float32), (u[:, :rank] * root).astype(np.float32)


@pytest.mark.parametrize(("split", "alive"), [("ours", True), ("symmetric", False)])
def test_a_zero_product_cut_before_the_first_update_can_still_train(split: str, alive: bool) -> None:
    a, b = pair(rank=4, out=3, in_=5)
    b[:] = 0.0
    cut_a, cut_b = ordered(a, b, "svd").first(2) if split == "ours" else symmetric(a, b, 2)
    torch.manual_seed(1)
    model = nn.ModuleDict({"m": nn.Linear(5, 3)})
    layers, _ = attach(model, ["m"], rank_max=2, scale=2.0)
    layers["m"].a.data.copy_(torch.from_numpy(cut_a))
    layers["m"].b.data.copy_(torch.from_numpy(cut_b))
    optimizer = torch.optim.SGD(layers["m"].parameters(), 0.1)
    model["m"](torch.randn(7, 5)).square().sum().backward()
    optimizer.step()
    assert bool((layers["m"].b != 0).any()) is alive
    if alive:
        assert np.array_equal(cut_a, a[:2])  # nothing to order by, so A keeps its own rows


def test_importance_shares_the_same_total_out_over_all_layers() -> None:
    scores = {"x": [9.0, 1.0, 0.5], "y": [8.0, 7.0, 6.0], "z": [0.1, 0.1, 0.1]}
    components = {
        name: Components(np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float32), np.array(values))
        for name, values in scores.items()
    }
    assert uniform_ranks(components, 2) == {"x": 2, "y": 2, "z": 2}
    assert ranks_by_importance(components, 2) == {"x": 2, "y": 3, "z": 1}  # 6 in all; z keeps its one
    assert ranks_by_importance(components, 1) == {"x": 1, "y": 1, "z": 1}
    assert ranks_by_importance(dict(reversed(components.items())), 2) == {"x": 2, "y": 3, "z": 1}
