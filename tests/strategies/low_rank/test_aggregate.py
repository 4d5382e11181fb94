"""Means of factors and of products: factors in, against whole matrices in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core import frames
from fedloom.core.errors import BadUpdate
from fedloom.core.records import MODEL, Array, Update
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank.accumulator import Accumulator
from fedloom.strategies._low_rank.products import relative_error
from fedloom.strategies._low_rank.wire import pack

LAYERS = {"x": (7, 5), "y": (6, 8)}
WEIGHTS = [3.0, 1.0, 4.0, 2.0]


def client(index: int, rank: int) -> Update:
    rng = generator(index, "client")
    groups = {
        MODEL: {"head": rng.standard_normal(4).astype(np.float32)},
        LORA_A: {n: rng.standard_normal((rank, i)).astype(np.float32) for n, (_, i) in LAYERS.items()},
        LORA_B: {n: rng.standard_normal((o, rank)).astype(np.float32) for n, (o, _) in LAYERS.items()},
    }
    return Update(num_examples=1, groups=groups)


def fold(updates: list[Update], parts: int = 1, wire: Any = "fp32") -> Accumulator:
    """The updates folded in parts that are sent as frames and merged, as the platform does it."""
    total = Accumulator()
    for part in np.array_split(np.arange(len(updates)), parts):
        some = Accumulator()
        for index in part:
            groups, reported = pack(updates[index].groups, wire)
            some.add(Update(num_examples=1, groups=groups, info=reported), WEIGHTS[index], int(index))
        total.merge(Accumulator.from_record(frames.decode(bytes(frames.encode(some.record())))))
    return total


def mean_matrices(updates: list[Update]) -> dict[str, Array]:
    shares = np.array(WEIGHTS[: len(updates)]) / sum(WEIGHTS[: len(updates)])
    return {
        name: sum(
            p * (u.groups[LORA_B][name].astype(np.float64) @ u.groups[LORA_A][name])
            for p, u in zip(shares, updates, strict=True)
        )
        for name in LAYERS
    }


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("ranks", [(2, 2, 2, 2), (1, 4, 2, 3), (4, 5, 5, 4)], ids=["equal", "mixed", "matrix"])
def test_the_mean_product_is_the_mean_of_whole_matrices(ranks: tuple[int, ...], parts: int) -> None:
    updates = [client(index, rank) for index, rank in enumerate(ranks)]
    total = fold(updates, parts)
    for name, want in mean_matrices(updates).items():
        product = total.products()[name]
        scale = np.abs(want).max()
        assert np.abs(product.dense() - want).max() < 1e-6 * scale
        a, b = product.compact()
        assert np.abs(b.astype(np.float64) @ a - want).max() < 1e-6 * scale
        u, sigma, vt = np.linalg.svd(want)
        a, b = product.truncated(2)
        np.testing.assert_allclose(b @ a, (u[:, :2] * sigma[:2]) @ vt[:2], atol=1e-5)
        np.testing.assert_allclose(product.norm(), np.linalg.norm(want), rtol=1e-5)


@pytest.mark.parametrize("ranks", [(2, 2, 2, 2), (4, 5, 5, 4)])
def test_the_error_of_averaged_factors_is_that_of_their_covariance(ranks: tuple[int, ...]) -> None:
    """Σ p_k B_k A_k - B A = Σ p_k (B_k - B)(A_k - A), with zeros below where a client's rank is smaller."""
    updates = [client(index, rank) for index, rank in enumerate(ranks)]
    total, shares, most = fold(updates), np.array(WEIGHTS) / sum(WEIGHTS), max(ranks)
    apart = whole = 0.0
    for name, (out, in_) in LAYERS.items():
        a = np.zeros((4, most, in_))
        b = np.zeros((4, out, most))
        for index, (update, rank) in enumerate(zip(updates, ranks, strict=True)):
            a[index, :rank], b[index, :, :rank] = update.groups[LORA_A][name], update.groups[LORA_B][name]
        mean_a, mean_b = np.tensordot(shares, a, 1), np.tensordot(shares, b, 1)
        np.testing.assert_allclose(total.value()[LORA_A][name], mean_a, atol=1e-6)
        np.testing.assert_allclose(total.value()[LORA_B][name], mean_b, atol=1e-6)
        covariance = sum(p * (b[k] - mean_b) @ (a[k] - mean_a) for k, p in enumerate(shares))
        apart += (covariance**2).sum()
        whole += (mean_matrices(updates)[name] ** 2).sum()
    means = total.value()
    error = relative_error(total.products(), dict(means[LORA_A]), dict(means[LORA_B]))
    assert error == pytest.approx(np.sqrt(apart / whole), rel=1e-5) and error > 0.1


def test_equal_clients_have_no_error() -> None:
    total = fold([client(0, 2)] * 4)
    means = total.value()
    assert relative_error(total.products(), dict(means[LORA_A]), dict(means[LORA_B])) < 1e-6
    np.testing.assert_allclose(means[MODEL]["head"], client(0, 2).groups[MODEL]["head"], rtol=1e-6)


def test_memory_is_bounded_by_the_matrix() -> None:
    total = Accumulator()
    for index in range(60):
        total.add(client(index, 3), 1.0, index)
        assert total.record().num_elements <= 4 + sum(3 * (o + i) + 2 * o * i + 3 * (o + i) for o, i in LAYERS.values())


@pytest.mark.parametrize(("wire", "tolerance"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_packed_updates_are_unpacked_before_they_are_added(wire: Any, tolerance: float) -> None:
    updates = [client(index, 2) for index in range(3)]
    plain, packed = fold(updates).value(), fold(updates, wire=wire).value()
    for group, arrays in plain.items():
        for name, array in arrays.items():
            assert packed[group][name].dtype == np.float32
            apart = np.abs(packed[group][name] - array).max()
            assert 0 < apart < tolerance * np.abs(array).max() * 2


class TestBadUpdates:
    def add(self, spoil: Any) -> None:
        total = Accumulator()
        total.add(client(0, 2), 1.0, 0)
        groups = {group: dict(arrays) for group, arrays in client(1, 2).groups.items()}
        spoil(groups)
        total.add(Update(num_examples=1, groups=groups), 1.0, 1)

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda g: g[LORA_B].pop("x"), r"client 1: group 'lora_b' differs .* layers \['x'\]"),
            (lambda g: g.pop(LORA_A), "client 1: factors"),
            (lambda g: g[LORA_A].update(x=np.ones((3, 5), np.float32)), "client 1: its factors A and B are not pairs"),
            (
                lambda g: g[LORA_A]["x"].__setitem__((0, 0), np.nan),
                "client 1: array 'x' of group 'lora_a' is not finite",
            ),
        ],
        ids=["layer", "group", "rank", "nan"],
    )
    def test_they_are_named(self, spoil: Any, words: str) -> None:
        with pytest.raises(BadUpdate, match=words):
            self.add(spoil)

    def test_no_weight_is_no_mean(self) -> None:
        total = Accumulator()
        total.add(client(0, 2), 0.0, 0)
        with pytest.raises(BadUpdate, match="total weight"):
            total.value()
