"""Whole groups as one program against the plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Job, Update, metric_values
from fedloom.core.seeds import generator

Build = Any
UNEQUAL = {"scheme": "dirichlet", "alpha": 0.3}
CASES: dict[str, dict[str, Any]] = {
    "equal sizes": {"partition": {"scheme": "iid"}},
    "unequal sizes": {"training": {"batch_size": 8, "epochs": 2}},
    "two hidden layers": {"model": {"hidden": [20, 12]}},
    "no hidden layer": {"model": {"hidden": []}},
    "poisson": {"encoder": {"name": "poisson"}, "training": {"batch_size": 8}},
    "latency, momentum": {"encoder": {"name": "latency"}, "training": {"momentum": 0.9, "nesterov": True}},
    "hard reset, clipped": {
        "neuron": {"reset": "hard", "kind": "lif", "surrogate": "fast_sigmoid"},
        "training": {"clip_norm": 0.5},
    },
    "reset at once, adamw": {
        "neuron": {"reset_delay": False, "kind": "lif", "surrogate": "triangular"},
        "training": {"optimizer": "adamw", "learning_rate": 0.002, "weight_decay": 0.1, "batch_size": 8, "epochs": 2},
    },
    "step loss, few steps": {"loss": "step", "training": {"max_steps": 2, "batch_size": 8, "weight_decay": 0.01}},
    "count loss, one step": {"loss": "count", "time_steps": 1},
    "mse, straight through": {"loss": "mse_count", "neuron": {"surrogate": "straight_through"}},
}


def both(work: Any, clients: list[int]) -> tuple[list[Update], list[Update], Any]:
    """Updates of the loop (arrays copied) and of the group."""
    inputs = {MODEL: work.init(generator(1, "model"))}
    jobs = [Job(round=1, client=client) for client in clients]
    shards = [work.shard(client) for client in clients]

    def rngs() -> list[np.random.Generator]:
        return [generator(1, "train", 1, client) for client in clients]

    loop = []
    for job, shard, rng in zip(jobs, shards, rngs(), strict=True):
        update = work.train(job, inputs, shard, None, rng)
        arrays = {name: array.copy() for name, array in update.groups[MODEL].items()}
        loop.append(Update(num_examples=update.num_examples, groups={MODEL: arrays}, metrics=update.metrics))
    return loop, work.train_group(jobs, inputs, shards, rngs()), inputs[MODEL]


@pytest.mark.parametrize("case", list(CASES))
def test_a_group_equals_the_loop(build: Build, case: str) -> None:
    work = build(40, **{"partition": UNEQUAL, "time_steps": 4, **CASES[case]})
    assert work.program == "group"
    loop, group, start = both(work, [7, 0, 31, 12, 25])
    for one, other in zip(loop, group, strict=True):
        assert one.num_examples == other.num_examples
        assert list(one.groups[MODEL]) == list(other.groups[MODEL])
        for name, array in one.groups[MODEL].items():
            assert other.groups[MODEL][name].dtype == np.float32
            np.testing.assert_allclose(other.groups[MODEL][name], array, rtol=0, atol=1e-5)
        want, got = metric_values(one.metrics), metric_values(other.metrics)
        assert list(got) == list(want)
        np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
        assert {name: mean.weight for name, mean in one.metrics.items()} == {
            name: mean.weight for name, mean in other.metrics.items()
        }
    moved = max(float(np.abs(group[0].groups[MODEL][n] - a).max()) for n, a in start.groups[MODEL].items())
    assert moved > 1e-4


def test_unequal_sizes_are_unequal_indeed(build: Build) -> None:
    sizes = [build(40, partition=UNEQUAL).shard(client).num_examples for client in [7, 0, 31, 12, 25]]
    assert len(set(sizes)) == 5


def test_bits_do_not_depend_on_the_company(build: Build) -> None:
    """A lost update can be made again alone."""
    work = build(40, partition=UNEQUAL, training={"batch_size": 8})
    inputs = {MODEL: work.init(generator(1, "model"))}

    def train(clients: list[int]) -> dict[int, Update]:
        jobs = [Job(round=1, client=client) for client in clients]
        rngs = [generator(1, "train", 1, client) for client in clients]
        return dict(zip(clients, work.train_group(jobs, inputs, [work.shard(c) for c in clients], rngs), strict=True))

    together, alone = train(list(range(12))), train([5])
    for name, array in alone[5].groups[MODEL].items():
        np.testing.assert_array_equal(array, together[5].groups[MODEL][name])


def test_updates_own_their_arrays(build: Build) -> None:
    for program in ("group", "loop"):
        work = build(10, program=program)
        _, group, _ = both(work, [1, 2])
        kept = {name: array.copy() for name, array in group[0].groups[MODEL].items()}
        both(work, [3])
        for name, array in group[0].groups[MODEL].items():
            np.testing.assert_array_equal(array, kept[name])
            assert not np.shares_memory(array, group[1].groups[MODEL][name])


class Halving(LocalRule):
    """A rule that halves gradients."""

    def adjust_gradients(self, gradients: Any, parameters: Any, anchor: Any, knobs: Any) -> None:
        for gradient in gradients:
            gradient.mul_(0.5)


def test_a_rule_is_obeyed_where_a_client_is_trained_alone(build: Build) -> None:
    """The group's program takes no rule; the platform trains clients one by one where there is one."""
    work = build(10, training={"max_steps": 1, "learning_rate": 0.1})
    inputs = {MODEL: work.init(generator(1, "model"))}
    job, shard = Job(round=1, client=1), work.shard(1)

    def change(rule: LocalRule | None) -> dict[str, np.ndarray]:
        trained = work.train(job, inputs, shard, rule, generator(1, "t")).groups[MODEL]
        return {name: array - inputs[MODEL].groups[MODEL][name] for name, array in trained.items()}

    full, halved = change(None), change(Halving())
    assert any(step.any() for step in full.values())
    for name, step in full.items():
        np.testing.assert_allclose(halved[name], step / 2, atol=1e-7)
