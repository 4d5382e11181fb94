"""Clients with parts of the network: what stays with them, joined nodes with data of their own, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import Fleet
from sent_records import sent_records
from site_fleet import Sites
from support_mlaan import experiment

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.run_files import read_choices
from fedloom.reporting.plugins import contributions
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.mlaan.config import Config

MIXED: dict[str, Any] = {
    "modes": ["dgl", "dgl_mlaan"],
    "net": {"depth": 8, "widths": [4, 6, 8], "norm": "group"},
    "train_examples": 120,
    "fleet": [[1, 3], [3, 3]],
    "keep_momentum": False,
    "training": {"batch_size": 16, "learning_rate": 0.1, "momentum": 0.9},
}
COMMON: dict[str, Any] = {"clients": 4, "strategy": "partial"}


@pytest.mark.parametrize(
    "runtime", [{"name": "inline"}, pytest.param({"name": "process", "workers": 2}, marks=pytest.mark.slow)]
)
def test_auxiliary_networks_kept_at_the_node_give_the_bits_of_those_kept_by_the_server(runtime: dict[str, Any]) -> None:
    results = {
        home: api.run(experiment(MIXED, **COMMON, runtime=runtime, round={"state_home": home}, rounds=3), keep=False)
        for home in ("server", "node")
    }
    assert results["server"].summary.model_sha256 == results["node"].summary.model_sha256
    # three rounds: the clients' own networks matter from the second on
    fresh = experiment(MIXED, **COMMON, rounds=3).override(["workload.leap.at_round=reset"])
    assert api.run(fresh, keep=False).summary.model_sha256 != results["node"].summary.model_sha256


def site(folder: Path, seed: int) -> dict[str, Any]:
    """A node with 40 images of its own, of four classes."""
    folder.mkdir()
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = np.arange(40) % 4
    images = rng.integers(0, 250, (40, 8, 8)).astype(np.uint8)
    np.savez(folder / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return {"workloads": {"mlaan": {"data": str(folder)}}}


def test_three_joined_nodes_train_on_their_own_data(tmp_path: Path) -> None:
    given: dict[str, Any] = {"source": "npz", "file": "$DATA/x.npz", "mean": [0.5], "std": [0.3]}
    made = experiment({**MIXED, "data": given}, **{**COMMON, "clients": 3})
    values = made.to_dict()
    del values["workload"]["train_examples"]
    nodes = {name: site(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"))}
    outcome = Fleet(tmp_path, **nodes).run(Experiment.parse(values))
    assert outcome.error is None and outcome.summary.status == "done"
    assert outcome.history[-1].local_trainings == 3


def test_sites_send_the_backbone_and_their_auxiliary_networks_never_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"source": "npz", "file": "$DATA/x.npz", "mean": [0.5], "std": [0.3]}
    values = experiment({**MIXED, "data": given, "fleet": [[1, 3]]}, clients="nodes").to_dict()
    del values["workload"]["train_examples"]
    made = Experiment.parse({**values, "rounds": 2, "round": {"state_home": "node"}})
    sent, sites, kept = sent_records(monkeypatch), Sites(tmp_path), list[bytes]()

    def look() -> None:  # a site forgets a run's states when the run is over
        kept.extend(path.read_bytes() for path in (tmp_path / "a" / "states").rglob("*") if path.is_file())

    try:
        for seed, name in enumerate(("a", "b", "c")):
            sites.start(name, **site(tmp_path / f"own-{name}", seed))
        outcome = sites.run(made, after={1: look})
    finally:
        sites.close()
    assert outcome.error is None and [record.local_trainings for record in outcome.history] == [3, 3]
    names = {name for record in sent for arrays in record.groups.values() for name in arrays}
    backbone = {name for name in names if name.startswith(("dgl.", "dgl_mlaan."))}
    assert {"dgl_mlaan.classifier.linear.weight", "dgl.stem.0.weight"} <= backbone
    assert not [name for name in names if "auxiliary" in name or "leap" in name or "cascade" in name]
    assert not [group for record in sent for group in record.groups if group in ("auxiliary", "averages", "velocity")]
    assert any(b"auxiliary.dgl_mlaan.leap0_0" in each and b"auxiliary.dgl.cascade0" in each for each in kept)


def test_the_report_has_the_modes_and_each_clients_memory(tmp_path: Path) -> None:
    result = api.run(experiment(MIXED, **COMMON), out=tmp_path / "run")
    run = RunFolder.read(tmp_path / "run")
    html = render_report(run)
    for expected in ("Modes", "activations", "optimiser", "Memory of clients", "client 3", "dgl_mlaan"):
        assert expected in html
    contribution = next(each for each in contributions(run) if each.tables)
    (table,) = contribution.tables
    assert [row[0] for row in table.rows] == ["dgl", "dgl_mlaan"] and len({len(row) for row in table.rows}) == 1
    lines = table.lines()
    assert len(lines) == 3 and lines[0].startswith("mode") and lines[0].index("accuracy") > 0
    evaluation = result.history[-1].evaluation or {}
    numbers = contribution.numbers
    assert numbers["accuracy_dgl"] == evaluation["accuracy_dgl"] and numbers["epoch_seconds"] > 0
    assert evaluation["accuracy"] == evaluation["accuracy_dgl_mlaan"]
    assert all(np.isfinite(value) for value in evaluation.values())
    assert numbers["least_client_bytes"] < numbers["most_client_bytes"]  # [3, 3] against [1, 3]
    choices = read_choices(run.path)
    assert {line.client for choice in choices for line in choice.trained} == {0, 1, 2, 3}


def test_a_weak_client_needs_less_memory_and_sends_less() -> None:
    made = experiment({**MIXED, "modes": ["dgl_mlaan"]}, **COMMON, rounds=1)
    strong, weak, early = (
        api.run(made.override([f"workload.fleet=[[{each}]]"]), keep=False) for each in ("1,3", "3,3", "1,1")
    )
    assert weak.history[-1].metrics["activation_bytes"] < strong.history[-1].metrics["activation_bytes"]
    # the first module has the largest images and the longest chain of copies, so it alone needs as much as all
    assert early.history[-1].metrics["activation_bytes"] == strong.history[-1].metrics["activation_bytes"]
    assert early.history[-1].traffic.params_up < strong.history[-1].traffic.params_up / 3


@pytest.mark.parametrize("name", ["mlaan", "mlaan-federated"])
def test_the_presets_compare_modes(name: str) -> None:
    config = api.load(name).workload
    assert isinstance(config, Config) and len(config.modes) >= 2 and config.modes[-1] == "dgl_mlaan"
    assert config.num_modules == 15
