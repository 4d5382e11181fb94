"""Firing rates: exact, independent of order and batches, with common random numbers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from fedloom.core.errors import BadUpdate, ConfigError
from fedloom.core.records import MODEL
from fedloom.core.seeds import generator
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._spiking import rates
from fedloom.workloads._spiking.encoders import row_noise

Build = Any


def naive_rates(arrays: Any, inputs: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """One example, step and layer after the other: IF neurons, soft reset, U > threshold; (n, T, d) to (n, out)."""
    layers = [name.removesuffix(".synapses.weight") for name in arrays if name.endswith("weight")]
    counts: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    for example in inputs:
        u = {n: np.zeros(len(arrays[f"{n}.synapses.bias"])) for n in layers}
        fired = {n: np.zeros_like(u[n]) for n in layers}
        total = {n: np.zeros_like(u[n]) for n in layers}
        for x in example:
            for n in layers:
                current = arrays[f"{n}.synapses.weight"].astype(float) @ x + arrays[f"{n}.synapses.bias"].astype(float)
                u[n] = u[n] + current - fired[n] * threshold
                fired[n] = (u[n] > threshold).astype(float)
                total[n] += fired[n]
                x = fired[n]
        for n in layers:
            counts[n].append(total[n] / len(example))
    return {n: np.array(values) for n, values in counts.items()}


@pytest.mark.parametrize("program", ["group", "loop"])
@pytest.mark.parametrize("encoder", ["direct", "poisson"])
def test_equal_to_a_naive_loop(build: Build, encoder: str, program: str) -> None:
    work = build(
        60,
        program=program,
        encoder={"name": encoder},
        neuron={"threshold": 0.5},
        model={"hidden": [12, 8]},
        time_steps=5,
    )
    arrays = work.init(generator(1, "model")).groups[MODEL]
    shard = work.shard(3)
    images = np.array(work._images.x_train[shard.rows], np.float64)
    if encoder == "direct":
        inputs = np.repeat(images.reshape(len(images), 1, -1), 5, 1)
    else:
        noise = row_noise(rates.noise_seed(generator(1, "rates")), "train", shard.rows, (5, 1, 8, 8)).numpy()
        raw = images * work._images.info["std"][0] + work._images.info["mean"][0]  # digits reach from 0 to 1
        inputs = (noise < raw[:, None]).astype(float).reshape(len(images), 5, -1)
    want = naive_rates(arrays, inputs, 0.5)
    got = work.firing_rates(arrays, shard, generator(1, "rates"), layers="all", per_sample=True)
    assert list(got) == ["hidden1", "hidden2", "output"]
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values)
    assert 0.05 < want["hidden2"].mean() < 0.8
    mean = work.firing_rates(arrays, shard, generator(1, "rates"))
    assert list(mean) == ["output"]
    np.testing.assert_allclose(mean["output"], want["output"].mean(0), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "settings", [{}, {"encoder": {"name": "poisson"}}, {"model": {"name": "resnet8"}}, {"program": "loop"}]
)
def test_independent_of_order_and_batches(build: Build, settings: dict[str, Any]) -> None:
    work = build(20, time_steps=4, neuron={"threshold": 0.5}, **settings)
    arrays = work.init(generator(1, "model")).groups[MODEL]
    rows = work.shard(0).rows
    shuffle = np.random.default_rng(1).permutation(len(rows))
    base = work.firing_rates(arrays, RowShard(rows), generator(4, "x"), layers="all", per_sample=True)
    turned = work.firing_rates(arrays, RowShard(rows[shuffle]), generator(4, "x"), layers="all", per_sample=True)
    mean, mean_turned = (
        work.firing_rates(arrays, RowShard(r), generator(4, "x"), layers="all") for r in (rows, rows[shuffle])
    )
    work._meter._batch_size = 7
    small = work.firing_rates(arrays, RowShard(rows), generator(4, "x"), layers="all", per_sample=True)
    for name, values in base.items():
        np.testing.assert_array_equal(turned[name], values[shuffle])
        np.testing.assert_array_equal(small[name], values)
        np.testing.assert_array_equal(mean[name], mean_turned[name])
        assert values.dtype == np.float64
        assert values.min() >= 0.0 and values.max() <= 1.0
        np.testing.assert_array_equal(values * 4, np.round(values * 4))  # multiples of 1 / T


def test_before_and_after_see_the_same_spikes(build: Build) -> None:
    """A first layer that copies its input to its neurons makes them show the encoder's spikes."""
    work = build(30, encoder={"name": "poisson"}, model={"hidden": [64]}, neuron={"threshold": 0.5}, time_steps=6)
    before = dict(work.init(generator(1, "model")).groups[MODEL])
    before["hidden1.synapses.weight"] = 1.0 * np.eye(64, dtype=np.float32)
    before["hidden1.synapses.bias"] = np.zeros(64, np.float32)
    after = dict(before)
    after["output.synapses.weight"] = before["output.synapses.weight"] + 0.5
    rng = generator(9, "measure", 1, 0)
    state = copy.deepcopy(rng.bit_generator.state)
    one, two = (work.firing_rates(m, work.shard(0), rng, layers="all", per_sample=True) for m in (before, after))
    assert rng.bit_generator.state == state
    np.testing.assert_array_equal(one["hidden1"], two["hidden1"])
    assert not np.array_equal(one["output"], two["output"])
    other = work.firing_rates(before, work.shard(0), generator(9, "measure", 2, 0), layers="all", per_sample=True)
    assert not np.array_equal(one["hidden1"], other["hidden1"])


@pytest.mark.parametrize("settings", [{}, {"encoder": {"name": "poisson"}}, {"model": {"hidden": [20, 12]}}])
def test_many_at_once_equal_one_by_one(build: Build, settings: dict[str, Any]) -> None:
    settings = {"partition": {"scheme": "dirichlet", "alpha": 0.3}, "time_steps": 4, **settings}
    work, plain = build(25, **settings), build(25, program="loop", **settings)
    work._meter._batch_size = 16  # several blocks, with fewer clients in each
    shards = [work.shard(client) for client in range(6)]
    assert len({shard.num_examples for shard in shards}) > 3
    models = [work.init(generator(k, "model")).groups[MODEL] for k in range(6)]
    for per_sample in (False, True):
        rngs = [generator(5, "measure", k) for k in range(6)]
        group = work.firing_rates_group(models, shards, rngs, layers="all", per_sample=per_sample)
        loop = plain.firing_rates_group(models, shards, rngs, layers="all", per_sample=per_sample)
        assert all(np.array_equal(g[name], one[name]) for g, one in zip(group, loop, strict=True) for name in one)
        for got, model, shard, rng in zip(group, models, shards, rngs, strict=True):
            want = plain.firing_rates(model, shard, rng, layers="all", per_sample=per_sample)
            assert list(got) == list(want)
            for name, values in want.items():
                np.testing.assert_array_equal(got[name], values)


def test_relabelled_classes_permute_the_rates(build: Build) -> None:
    work = build(30)
    arrays = dict(work.init(generator(1, "model")).groups[MODEL])
    order = np.random.default_rng(2).permutation(10)
    turned = {n: a[order] if n.startswith("output") else a for n, a in arrays.items()}
    plain, permuted = (work.firing_rates(m, work.shard(1), generator(1, "r"))["output"] for m in (arrays, turned))
    np.testing.assert_array_equal(permuted, plain[order])


def test_a_twin_has_no_rates(build: Build) -> None:
    work = build(5, twin=True)
    arrays = work.init(generator(1, "model")).groups[MODEL]
    with pytest.raises(ConfigError, match=r"workload\.twin.*no firing rates"):
        work.firing_rates(arrays, work.shard(0), generator(1, "r"))


def test_arrays_of_another_network_are_refused(build: Build) -> None:
    work = build(5)
    arrays = dict(work.init(generator(1, "model")).groups[MODEL])
    del arrays["output.synapses.bias"]
    with pytest.raises(BadUpdate, match=r"output\.synapses\.bias.*None.*\(10,\)"):
        work.firing_rates(arrays, work.shard(0), generator(1, "r"))
