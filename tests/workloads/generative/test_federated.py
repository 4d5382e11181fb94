"""Federated: exact sums over clients, chains that stay with them, joined nodes with data of their own, the report."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from site_fleet import Sites
from support_generative import MadeUpCensus, build, experiment

from fedloom import api
from fedloom.core.errors import UnsupportedFeature
from fedloom.core.protocols import Observation
from fedloom.core.records import MODEL, ClientReport, Job
from fedloom.core.seeds import generator
from fedloom.reporting.plugins import contributions
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.generative.classifier import features_of
from fedloom.workloads.generative.families import KINDS
from fedloom.workloads.generative.moments import Moments, frechet
from fedloom.workloads.generative.monitor.config import Config as MonitorConfig
from fedloom.workloads.generative.monitor.monitor import SampleDistances
from fedloom.workloads.generative.monitor.watch import SampleSums

MONITOR: dict[str, Any] = {"name": "generative", "samples": 30, "pictures": 16}
ONE_STEP: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 500}


@pytest.mark.parametrize("name", ["made", "pixelcnn", "transformer", "histogram", "gaussian"])
def test_one_full_step_on_every_client_is_the_step_on_the_pooled_images(name: str) -> None:
    """Their losses are means over images, so the mean of one gradient step, weighted by images, is the central step."""
    settings = {"members": [name], "training": ONE_STEP, "autoregressive": {"hidden": [16], "dropout": 0.0}}
    central = api.run(experiment(settings, rounds=1), keep=False)
    skewed = {**settings, "partition": {"scheme": "shards", "shards_per_client": 2}}
    federated = api.run(experiment(skewed, rounds=1, clients=4), keep=False)
    for array, expected in central.arrays.items():
        assert np.allclose(federated.arrays[array], expected, atol=1e-6), array


def test_bits_per_dimension_of_clients_add_up_to_those_of_all_images() -> None:
    made = experiment({"members": ["realnvp", "vae", "rbm", "ddpm"]}, clients=3)
    workload = build(made)
    inputs = {MODEL: workload.init(generator(1, "init"))}
    parts = [workload.evaluate(inputs, workload.shard(client)) for client in range(3)]
    whole = build(experiment({"members": ["realnvp", "vae", "rbm", "ddpm"]})).shard(0)
    pooled = workload.evaluate(inputs, whole)
    for name in ("realnvp", "vae", "rbm", "ddpm"):
        found = [part[f"bits_per_dim_{name}"] for part in parts]
        mean = sum(each.sum for each in found) / sum(each.weight for each in found)
        assert mean == pytest.approx(pooled[f"bits_per_dim_{name}"].value, rel=1e-5)


def test_the_monitors_distance_is_that_of_the_pooled_features() -> None:
    made = experiment({"members": ["histogram", "vae"]}, clients=3, monitor=MONITOR)
    workload, config = build(made), MonitorConfig.model_validate(MONITOR)
    inputs = {MODEL: workload.init(generator(1, "init"))}
    watch, monitor = SampleSums(config), SampleDistances(config)
    seen = [watch(workload, inputs, workload.shard(c), generator(1, "monitor", c)) for c in range(3)]
    assert all(isinstance(each, Observation) for each in seen)
    reading = monitor.read([report(client, each) for client, each in enumerate(seen)], [])
    own = np.concatenate([workload.shard(c).rows for c in range(3)])
    with torch.no_grad():
        real, _ = features_of(workload.models.classifier, workload.data.train.batch(torch.from_numpy(own))[0][0])
        samples = []
        for client in range(3):
            again = workload.census(
                inputs, workload.shard(client), generator(1, "monitor", client), samples=30, pictures=30
            )
            samples.append(again["members"]["vae"])
        images = np.concatenate([np.frombuffer(base64.b64decode(each["pictures"]), np.uint8) for each in samples])
        made_up, _ = features_of(workload.models.classifier, torch.from_numpy(images.reshape(-1, 1, 8, 8).astype(int)))
    expected = frechet(Moments.of(made_up.numpy()), Moments.of(real.numpy()))
    assert reading.metrics["frechet_vae"] == pytest.approx(expected, abs=1e-9)
    assert reading.info["members"]["vae"]["samples"] == 90


def report(client: int, seen: Observation) -> ClientReport:
    return ClientReport(client=client, num_examples=seen.num_examples, seconds=0.1, info=seen.info)


def test_the_monitor_reads_coverage_memorisation_and_information() -> None:
    config = MonitorConfig.model_validate({**MONITOR, "samples": 10})
    found = MadeUpCensus().census({}, None, generator(1, "x"), samples=10, pictures=0)
    reading = SampleDistances(config).read([ClientReport(client=0, num_examples=40, seconds=0.1, info=found)], [])
    line = reading.info["members"]["vae"]
    assert line["covered"] == 2 and line["nearer"] == pytest.approx(1 - 2.0 / 2.5)
    assert line["inception"] == pytest.approx(np.exp(-0.3 + np.log(2))) and line["samples_per_second"] == 20
    assert not reading.warnings and SampleDistances(config).read([], []).metrics == {}
    found["test_distance"] = [300.0, 30.0]
    warned = SampleDistances(config).read([ClientReport(client=0, num_examples=40, seconds=0.1, info=found)], [])
    assert any("vae" in name for name in warned.warnings)


def test_the_monitor_wants_a_generative_workload() -> None:
    with pytest.raises(UnsupportedFeature, match="needs a workload with census"):
        SampleSums(MonitorConfig()).check(object())


@pytest.mark.parametrize("name", ["langevin", "rbm", "jem"])
def test_chains_stay_with_the_client_and_matter(name: str, tmp_path: Path) -> None:
    runs = {}
    for home in ("server", "node"):
        made = experiment({"members": [name], "train_examples": 60}, clients=3, rounds=3, round={"state_home": home})
        runs[home] = api.run(made, out=tmp_path / home)
    assert runs["server"].summary.model_sha256 == runs["node"].summary.model_sha256
    assert not any("replay" in array for array in runs["node"].arrays)
    written = list((tmp_path / "node").rglob("*.safetensors"))
    for path in written:
        with safe_open(path, "np") as file:
            assert not any("replay" in key for key in file.keys()), path  # noqa: SIM118
    workload = build(experiment({"members": [name], "train_examples": 60}))
    inputs, shard = {MODEL: workload.init(generator(1, "init"))}, workload.shard(0)
    job = Job(round=1, client=0)
    first = workload.train(job, inputs, shard, None, generator(1, "train"))
    fresh = {key: np.array(each) for key, each in first.groups[MODEL].items()}
    continued = workload.train(job, inputs, shard, None, generator(1, "train"), first.state)
    assert any(not np.array_equal(fresh[key], each) for key, each in continued.groups[MODEL].items())


def data_of(folder: Path, seed: int) -> None:
    """40 images of a site's own, of four classes."""
    folder.mkdir(parents=True)
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = np.arange(40) % 4
    images = rng.integers(0, 250, (40, 8, 8)).astype(np.uint8)
    np.savez(folder / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)


SMALL = [
    "rounds=2",
    "evaluation.every=1",
    "monitor.samples=6",
    "workload.training.max_steps=2",
    "workload.energy.chains=16",
    "workload.energy.steps=2",
    "workload.energy.sampling_steps=4",
    "workload.diffusion.steps=5",
    "workload.vae.bound_samples=2",
]


def test_the_preset_runs_on_three_joined_nodes_with_data_of_their_own_and_their_chains_stay(tmp_path: Path) -> None:
    data = ["source=npz", "file=$DATA/x.npz", "mean=[0.5]", "std=[0.3]"]
    made = api.load("generative-federated", ["clients=nodes", *SMALL, *(f"workload.data.{each}" for each in data)])
    sites, kept = Sites(tmp_path), list[Path]()

    def stored() -> list[Path]:
        return [path for name in "abc" for path in (tmp_path / name / "states").rglob("*") if path.is_file()]

    try:
        for seed, name in enumerate(("a", "b", "c")):
            data_of(tmp_path / f"own-{name}", seed)
            sites.start(name, workloads={"generative": {"data": str(tmp_path / f"own-{name}")}})
        outcome = sites.run(made, after={1: lambda: kept.extend(stored())})
    finally:
        sites.close()
    assert outcome.error is None and outcome.summary.status == "done"
    last = outcome.history[-1]
    assert last.local_trainings == 3 and last.monitor["clients"] == 3
    evaluation = last.evaluation or {}
    assert {f"bits_per_dim_{family}" for family in ("vae", "autoregressive", "flow", "diffusion")} <= evaluation.keys()
    assert {f"frechet_{family}" for family in ("energy", "vae", "gan")} <= evaluation.keys()
    assert len(kept) >= 3, "no node has stored its chains"
    assert last.traffic.params_up < 1.1 * 3 * sum(each.size for each in outcome.arrays.values())


def test_the_report_has_the_table_and_the_samples(tmp_path: Path) -> None:
    made = experiment({"members": ["histogram", "vae", "gan"]}, clients=2, rounds=3, monitor=MONITOR)
    result = api.run(made, out=tmp_path / "run")
    run = RunFolder.read(tmp_path / "run")
    html = render_report(run)
    for expected in ("Generative models", "Fréchet", "n/a (no likelihood)", "Samples", "data:image/png", "Round 1"):
        assert expected in html
    contribution = next(each for each in contributions(run) if each.tables)
    (table,) = contribution.tables
    assert [row[0] for row in table.rows] == [KINDS[name].title for name in ("histogram", "vae", "gan")]
    evaluation, numbers = result.history[-1].evaluation or {}, contribution.numbers
    assert numbers["frechet_vae"] == evaluation["frechet_vae"] == numbers["frechet_vae"]
    assert numbers["bits_per_dim_vae"] == evaluation["bits_per_dim_vae"] and np.isnan(numbers["bits_per_dim_gan"])
    assert numbers["frechet_floor"] > 0 and numbers["parameters_gan"] > 0 and numbers["training_seconds_vae"] > 0
    assert result.summary.metrics["bits_per_dim_vae"] == evaluation["bits_per_dim_vae"]


def test_the_report_without_the_monitor_has_bits_alone(tmp_path: Path) -> None:
    api.run(experiment({"members": ["vae"]}), out=tmp_path / "run")
    (table,) = next(each for each in contributions(RunFolder.read(tmp_path / "run")) if each.tables).tables
    assert table.rows[0][4] != table.rows[0][2]
