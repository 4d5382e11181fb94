"""The low-rank family a second way: schedules by their formulas, aggregation and cuts with whole matrices."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import peft
import pytest
import torch
from torch import nn

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core.records import MODEL, Array, Record, Update
from fedloom.core.seeds import generator
from fedloom.strategies._low_rank import saving
from fedloom.strategies._low_rank.accumulator import Accumulator
from fedloom.strategies._low_rank.layers import fresh_a
from fedloom.strategies._low_rank.products import relative_error
from fedloom.strategies._low_rank.schedule import Law, Schedule
from fedloom.strategies._low_rank.shrink import ordered
from fedloom.strategies._low_rank.wire import pack, unpack
from fedloom.workloads._adapters.layers import attach_to, merge

RNG = generator(1, "low rank a second way")
A, B = RNG.normal(size=(16, 40)).astype(np.float32), RNG.normal(size=(30, 16)).astype(np.float32)
PRODUCT = B.astype(np.float64) @ A


def by_hand(rounds: int, low: int, high: int, law: str, heating: int, cooling: int) -> list[int]:
    """Ranks of the annealing rounds: a plateau, the law, a plateau; rounded half up, never below the last."""
    ranks = []
    for i in range(rounds):
        u = (i - heating + 1) / (rounds - heating - cooling + 1)
        laws = {
            "cubic": low + (high - low) * (1 - u) ** 3,
            "geometric": high * (low / high) ** u,
            "cosine": low + (high - low) * (1 + math.cos(math.pi * u)) / 2,
            "linear": low + (high - low) * (1 - u),
        }
        plateau = high if i < heating else low if i >= rounds - cooling else None
        ranks.append(max(low, math.floor(laws[law] + 0.5)) if plateau is None else plateau)
    return ranks


@pytest.mark.parametrize("law", ["cubic", "geometric", "cosine", "linear"])
def test_schedules_are_their_formulas(law: Law) -> None:
    assert law in get_args(Law)
    for _ in range(300):
        rounds, low = int(RNG.integers(2, 200)), int(RNG.integers(1, 9))
        initiating, high = int(RNG.integers(0, rounds)), low + int(RNG.integers(0, 30))
        heating, cooling = 0.5 * RNG.random(), 0.4 * RNG.random()
        annealing = rounds - initiating
        n_heat, n_cool = math.floor(heating * annealing + 0.5), math.floor(cooling * annealing + 0.5)
        if n_heat + n_cool > annealing:
            continue
        made = Schedule(
            rounds=rounds, initiating=initiating, rank_max=high, rank_min=low, law=law, heating=heating, cooling=cooling
        )
        assert list(made.ranks) == by_hand(annealing, low, high, law, n_heat, n_cool)


def test_the_saving_of_fifty_rounds_is_arithmetic() -> None:
    made = Schedule(rounds=50, initiating=3, rank_max=16, rank_min=2, law="cubic", heating=0.1, cooling=0.2)
    head, shapes = 3_850, [(384, 384)] * 12
    whole = 22_713_216 + head
    sent = 3 * whole + sum(12 * 768 * rank + head for rank in made.ranks)
    assert sum(made.ranks) == 276
    assert saving.saving(made, whole, head, shapes) == pytest.approx(1 - sent / (50 * whole))
    assert round(1 - sent / (50 * whole), 5) == 0.93760


def test_a_cut_by_singular_values_is_the_best_of_its_rank() -> None:
    sigma = np.linalg.svd(PRODUCT)[1]
    errors = {}
    for operator in ("svd", "slice", "score"):
        a, b = ordered(A, B, operator).first(5)
        errors[operator] = float(((PRODUCT - b.astype(np.float64) @ a) ** 2).sum())
    assert errors["svd"] == pytest.approx(float((sigma[5:] ** 2).sum()), rel=1e-5)
    assert errors["svd"] <= min(errors["slice"], errors["score"])
    a, b = ordered(A, np.zeros_like(B), "svd").first(5)
    assert np.abs(a).max() > 0 and b.shape == (30, 5)  # a product of zero can still be trained


def sent(ranks: tuple[int, ...], weights: Array) -> tuple[Accumulator, list[Array], list[Array]]:
    total, factors_a, factors_b = Accumulator(), list[Array](), list[Array]()
    for k, rank in enumerate(ranks):
        factors_a.append(RNG.normal(size=(rank, 40)).astype(np.float32))
        factors_b.append(RNG.normal(size=(30, rank)).astype(np.float32))
        groups = {
            MODEL: {"h": np.full(3, k, np.float32)},
            LORA_A: {"l": factors_a[-1]},
            LORA_B: {"l": factors_b[-1]},
        }
        total.add(Update(num_examples=int(weights[k]), groups=groups), float(weights[k]), k)
    return total, factors_a, factors_b


def test_every_aggregation_is_that_of_whole_matrices() -> None:
    weights = np.array([3.0, 50.0, 7.0, 21.0, 89.0])
    p = weights / weights.sum()
    total, a, b = sent((8,) * 5, weights)
    mean_a, mean_b = (np.tensordot(p, np.array(each, np.float64), 1) for each in (a, b))
    whole = sum(p[k] * b[k].astype(np.float64) @ a[k] for k in range(5))
    means = total.value()
    np.testing.assert_allclose(means[LORA_A]["l"], mean_a, atol=1e-5)
    np.testing.assert_allclose(means[LORA_B]["l"], mean_b, atol=1e-5)
    np.testing.assert_allclose(means[MODEL]["h"], (p * np.arange(5)).sum(), rtol=1e-6)
    product = total.products()["l"]
    np.testing.assert_allclose(product.dense(), whole, atol=1e-4)
    scatter = sum(p[k] * (b[k] - mean_b) @ (a[k] - mean_a) for k in range(5))
    error = relative_error({"l": product}, {"l": means[LORA_A]["l"]}, {"l": means[LORA_B]["l"]})
    assert error == pytest.approx(float(np.linalg.norm(scatter) / np.linalg.norm(whole)), abs=1e-5)
    u, sigma, vt = np.linalg.svd(whole)
    cut_a, cut_b = product.truncated(8)
    np.testing.assert_allclose(cut_b.astype(np.float64) @ cut_a, (u[:, :8] * sigma[:8]) @ vt[:8], atol=1e-3)
    np.testing.assert_allclose(cut_a @ cut_a.T, np.eye(8), atol=1e-5)
    stack_a, stack_b = product.compact()
    np.testing.assert_allclose(stack_b.astype(np.float64) @ stack_a, whole, atol=1e-3)
    rest = product.minus(means[LORA_A]["l"], means[LORA_B]["l"])
    np.testing.assert_allclose(rest.dense(), scatter, atol=1e-3)


def test_clients_of_lower_rank_are_padded_with_zeros() -> None:
    total, a, _ = sent((2, 4, 8), np.ones(3))
    mean = total.value()[LORA_A]["l"]
    np.testing.assert_allclose(mean[4:], a[2][4:] / 3, atol=1e-6)
    np.testing.assert_allclose(mean[:2], (a[0] + a[1][:2] + a[2][:2]) / 3, atol=1e-6)


def test_eight_bits_are_off_by_half_a_scale_and_counted() -> None:
    array = RNG.normal(size=(33, 65)).astype(np.float32)
    groups, info = pack({LORA_A: {"l": array}}, "int8")
    blocks = np.pad(array.reshape(-1), (0, -array.size % 64)).reshape(-1, 64)
    scale = np.repeat(np.abs(blocks).max(1) / 127, 64)[: array.size].reshape(array.shape)
    assert (np.abs(unpack(groups, info)[LORA_A]["l"] - array) <= scale / 2 + 1e-6).all()
    assert Record(groups).num_bytes == 33 * 65 + 4 * math.ceil(33 * 65 / 64) == 2_281


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(12, 9), torch.randn(5, 12)),
        (nn.Conv2d(3, 8, 3, 2, 1), torch.randn(2, 3, 9, 9)),
        (nn.Embedding(20, 7), torch.arange(20).reshape(4, 5)),
    ],
)
def test_an_adapter_computes_what_the_merged_weight_does(layer: nn.Module, inputs: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(layer)
    layers, detach = attach_to(network, ["0"], rank_max=4, scale=2.0)
    nn.init.normal_(layers["0"].a)
    nn.init.normal_(layers["0"].b)
    layers["0"].rank = 3
    with torch.no_grad():
        adapted = network(inputs)
        detach()
        merge(network, layers)
        torch.testing.assert_close(network(inputs), adapted, rtol=1e-4, atol=1e-4)


def test_first_factors_are_drawn_as_peft_draws_them() -> None:
    """Uniform on ±1/√i: both fill that interval, and no more."""
    bound = 384**-0.5
    wrapped = peft.get_peft_model(nn.Sequential(nn.Linear(384, 384)), peft.LoraConfig(r=8, target_modules=["0"]))
    theirs = next(value for name, value in wrapped.named_parameters() if "lora_A" in name).detach().numpy()
    ours = fresh_a(1, 0, {"0": (8, 384)})["0"]
    for drawn in (theirs, ours):
        assert np.abs(drawn).max() == pytest.approx(bound, rel=0.01)
        assert drawn.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
