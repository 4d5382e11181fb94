"""The workload: settings, determinism, metrics, and that it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import snntorch.utils

from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, ConfigError
from fedloom.core.records import MODEL, Job, Record, metric_values
from fedloom.core.seeds import generator

Build = Any


def parse(**workload: Any) -> Experiment:
    settings = {"name": "spiking_classification", **workload}
    return Experiment.parse({"rounds": 1, "strategy": "fedavg", "workload": settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_steps": 0}, r"workload\.time_steps: .*greater than or equal to 1, got 0"),
        ({"encoder": {"name": "latency"}, "time_steps": 1}, r"'latency' .*at least 2 steps, got 1"),
        ({"encoder": {"name": "morse"}}, r"workload\.encoder\.name: expected one of .*'morse'"),
        ({"encoder": {"name": "poisson", "values": "unit"}}, r"workload\.encoder\.values"),
        ({"encoder": {"name": "poisson"}, "twin": True}, r"workload\.encoder\.name: 'poisson' given, but a twin"),
        ({"neuron": {"beta": 0.9}}, r"workload\.neuron\.beta: 0\.9 given, but a neuron of kind \"if\""),
        ({"neuron": {"kind": "lif", "beta": 1.5}}, r"workload\.neuron\.beta: .*got 1\.5"),
        ({"neuron": {"threshold": 0.0}}, r"workload\.neuron\.threshold: .*got 0\.0"),
        ({"neuron": {"surrogate": "straight_through", "surrogate_constant": 2.0}}, r"has no constant"),
        ({"model": {"dropout": 0.5}}, r"workload\.model\.dropout"),
        ({"model": {"name": "conv"}, "program": "group"}, r"workload\.program: \"group\" trains .*'conv'"),
        ({"twin": True, "program": "group"}, r"workload\.program: .*got a twin"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**settings)


def test_what_only_the_data_can_tell(build: Build) -> None:
    with pytest.raises(ConfigError, match="'delta' reads an image's channels as successive frames"):
        build(encoder={"name": "delta"})


def test_event_like_data(build: Build, tmp_path: Any) -> None:
    """Three frames of a dot that moves one way or the other."""
    frames = np.zeros((40, 3, 5, 5), np.float32)
    labels = np.arange(40) % 2
    for step in range(3):
        frames[labels == 0, step, 2, 1 + step] = 1.0
        frames[labels == 1, step, 2, 3 - step] = 1.0
    np.savez(tmp_path / "dots.npz", x_train=frames, y_train=labels, x_test=frames[:8], y_test=labels[:8])
    work = build(
        data={"source": "npz", "file": str(tmp_path / "dots.npz"), "kind": "synthetic"},
        encoder={"name": "delta"},
        time_steps=3,
        training={"epochs": 20, "learning_rate": 0.1, "batch_size": 10},
        model={"hidden": [16]},
        neuron={"threshold": 0.5},
    )
    start = work.init(generator(1, "model"))
    assert start.groups[MODEL]["hidden1.synapses.weight"].shape == (16, 2 * 5 * 5)  # on and off events
    update = work.train(Job(round=1, client=0), {MODEL: start}, work.shard(0), None, generator(1, "t"))
    assert metric_values(work.evaluate({MODEL: Record(update.groups)}, work.held_out(0, 1)))["accuracy"] == 1.0


def test_only_weights_travel(build: Build) -> None:
    start = build(model={"hidden": [64]}, neuron={"kind": "lif"}).init(generator(1, "model"))
    shapes = {name: array.shape for name, array in start.groups[MODEL].items()}
    assert shapes == {
        "hidden1.synapses.weight": (64, 64),
        "hidden1.synapses.bias": (64,),
        "output.synapses.weight": (10, 64),
        "output.synapses.bias": (10,),
    }
    assert start.num_elements == 64 * 64 + 64 + 10 * 64 + 10
    again = build(model={"hidden": [64]}, neuron={"kind": "lif"}).init(generator(1, "model"))
    assert all(np.array_equal(array, again.groups[MODEL][name]) for name, array in start.groups[MODEL].items())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoder": {"name": "poisson"}},
        {"twin": True},
        {"model": {"name": "resnet8", "norm": "batch_through_time"}, "training": {"max_steps": 2}},
    ],
)
def test_same_job_same_bytes_whatever_ran_before(build: Build, settings: dict[str, Any]) -> None:
    settings = {"training": {"momentum": 0.9}, "time_steps": 3, **settings}
    one, other = build(30, **settings), build(30, **settings)
    start = one.init(generator(1, "model"))

    def bits(work: Any, client: int) -> list[bytes]:
        rng = generator(1, "train", 1, client)
        update = work.train(Job(round=1, client=client), {MODEL: start}, work.shard(client), None, rng)
        return [array.tobytes() for array in update.groups[MODEL].values()]

    first = bits(one, 4)
    for client in (9, 2):
        bits(other, client)
    other.evaluate({MODEL: start}, other.held_out(0, 2))
    if "twin" not in settings:
        other.firing_rates(start.groups[MODEL], other.shard(3), generator(1, "r"))
    snntorch.utils.reset(other.network)  # nothing there for it to break
    assert bits(other, 4) == first


def test_metrics_add_up_over_parts(build: Build) -> None:
    work = build(encoder={"name": "poisson"}, neuron={"threshold": 0.5}, time_steps=4)
    start = work.init(generator(1, "model"))
    whole = work.evaluate({MODEL: start}, work.held_out(0, 1))
    parts = [work.evaluate({MODEL: start}, work.held_out(part, 3)) for part in range(3)]
    assert list(whole) == ["loss", "accuracy", "energy_pj", "spikes", "rate/hidden1", "rate/output", "dead"]
    for name, mean in whole.items():
        assert mean.weight == 359
        if name != "dead":
            np.testing.assert_allclose(sum(part[name].sum for part in parts), mean.sum, rtol=1e-3)
    values = metric_values(whole)
    np.testing.assert_allclose(
        values["spikes"], 4 * (64 * values["rate/hidden1"] + 10 * values["rate/output"]), rtol=1e-6
    )
    shard = work.shard(0)
    own = work.firing_rates(start.groups[MODEL], shard, generator(1, "r"))["output"].mean()
    assert (
        abs(metric_values(work.evaluate({MODEL: start}, shard))["rate/output"] - own) < 0.01
    )  # other noise, 1438 examples


@pytest.mark.parametrize("encoder", [{"name": "direct"}, {"name": "poisson"}])
def test_class_errors_are_what_is_held_minus_what_is_answered(build: Build, encoder: dict[str, Any]) -> None:
    workload = build(clients=10, encoder=encoder)
    arrays, shard = workload.init(generator(3)).groups[MODEL], workload.shard(4)
    rates = workload.firing_rates(arrays, shard, generator(7), layers="output", per_sample=True)["output"]
    answered = np.exp(rates) / np.exp(rates).sum(1, keepdims=True)
    held = np.eye(10)[workload._images.y_train[shard.rows]]
    errors = workload.class_errors(arrays, shard, generator(7))
    np.testing.assert_allclose(errors, (held - answered).mean(0), atol=1e-6)
    np.testing.assert_array_equal(errors, workload.class_errors(arrays, shard, generator(7)))


def test_dead_layers_are_counted(build: Build) -> None:
    work = build(dead_rate_floor=0.05)
    arrays = dict(work.init(generator(1, "model")).groups[MODEL])
    arrays["output.synapses.weight"] = np.zeros_like(arrays["output.synapses.weight"])
    arrays["output.synapses.bias"] = np.full(10, -1.0, np.float32)
    values = metric_values(work.evaluate({MODEL: Record({MODEL: arrays})}, work.held_out(0, 1)))
    assert values["rate/output"] == 0.0
    assert values["rate/hidden1"] > 0.05
    assert values["dead"] == 0.5
    assert build(dead_rate_floor=0.0).evaluate({MODEL: Record({MODEL: arrays})}, work.held_out(0, 1))["dead"].sum == 0.0


def test_an_empty_part_has_no_weight(build: Build) -> None:
    work = build()
    metrics = work.evaluate({MODEL: work.init(generator(1, "model"))}, work.held_out(0, 1000))
    assert {mean.weight for mean in metrics.values()} == {0.0}


def test_a_model_of_another_network_is_refused(build: Build) -> None:
    work, other = build(5), build(5, model={"hidden": [32]})
    inputs = {MODEL: other.init(generator(1, "model"))}
    job, rng = Job(round=1, client=0), generator(1, "t")
    with pytest.raises(BadUpdate, match=r"hidden1\.synapses"):
        work.train(job, inputs, work.shard(0), None, rng)
    with pytest.raises(BadUpdate, match=r"hidden1\.synapses"):
        work.train_group([job], inputs, [work.shard(0)], [rng])


@pytest.mark.parametrize("neuron", [{}, {"kind": "lif", "reset": "hard"}])
def test_a_spiking_mlp_learns_digits(build: Build, neuron: dict[str, Any]) -> None:
    work = build(neuron=neuron, training={"epochs": 8})
    start = work.init(generator(1, "model"))
    job = Job(round=1, client=0)
    update = work.train_group([job], {MODEL: start}, [work.shard(0)], [generator(1, "t")])[0]
    values = metric_values(work.evaluate({MODEL: Record(update.groups)}, work.held_out(0, 1)))
    assert values["accuracy"] >= 0.9
    assert values["dead"] == 0.0


def test_federated_averaging_improves(build: Build) -> None:
    work = build(20, partition={"scheme": "dirichlet", "alpha": 0.3}, training={"epochs": 3})
    model = work.init(generator(1, "model"))
    accuracy = [metric_values(work.evaluate({MODEL: model}, work.held_out(0, 1)))["accuracy"]]
    for round in range(1, 13):
        cohort = generator(1, "cohort", round).choice(20, 8, replace=False).tolist()
        jobs = [Job(round=round, client=client) for client in cohort]
        rngs = [generator(1, "train", round, client) for client in cohort]
        updates = work.train_group(jobs, {MODEL: model}, [work.shard(c) for c in cohort], rngs)
        total = sum(update.num_examples for update in updates)
        model = Record({MODEL: {
            name: sum(u.num_examples / total * u.groups[MODEL][name] for u in updates).astype(np.float32)
            for name in model.groups[MODEL]
        }})  # fmt: skip
        accuracy.append(metric_values(work.evaluate({MODEL: model}, work.held_out(0, 1)))["accuracy"])
    assert accuracy[0] < 0.3
    assert accuracy[-1] > 0.75
