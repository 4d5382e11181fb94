"""Nodes whose data differs: one numbering of classes and one normalisation for all of them, or a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import Fleet

from fedloom.core.config import Experiment
from fedloom.core.errors import DataMissing
from fedloom.server.rounds.session import Outcome


def site(folder: Path, classes: str, white: int = 250) -> dict[str, Any]:
    """A node with 40 images of its own, of these classes."""
    folder.mkdir()
    rng = np.random.Generator(np.random.PCG64(len(classes) + white))
    labels = np.array([classes[index % len(classes)] for index in range(40)])
    images = rng.integers(0, white, (40, 4, 4)).astype(np.uint8)
    np.savez(folder / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return {"workloads": {"image_classification": {"data": str(folder)}}}


def run(tmp_path: Path, nodes: dict[str, dict[str, Any]], **data: object) -> Outcome:
    workload = {
        "name": "image_classification",
        "model": {"name": "mlp", "hidden": [4]},
        "data": {"source": "npz", "file": "$DATA/x.npz", **data},
        "partition": {"scheme": "iid"},
    }
    values = {"rounds": 2, "clients": 4, "strategy": "fedavg", "workload": workload}
    return Fleet(tmp_path, **nodes).run(Experiment.parse(values))


def test_classes_that_differ_are_refused_and_named(tmp_path: Path) -> None:
    nodes = {"a": site(tmp_path / "da", "bm"), "b": site(tmp_path / "db", "mn")}
    outcome = run(tmp_path, nodes, mean=[0.5], std=[0.3])
    assert isinstance(outcome.error, DataMissing) and "workload.data.classes" in str(outcome.error)
    assert "b, m" not in str(outcome.error) and "m, n" not in str(
        outcome.error
    )  # these nodes keep details to themselves
    open_nodes = {name: {**values, "tracebacks": True} for name, values in nodes.items()}
    said = str(run(tmp_path, open_nodes, mean=[0.5], std=[0.3]).error)
    assert "this node's classes are m, n," in said or "this node's classes are b, m," in said


def test_normalisation_that_differs_is_refused(tmp_path: Path) -> None:
    nodes = {"a": site(tmp_path / "da", "bm"), "b": site(tmp_path / "db", "bm", white=90)}
    outcome = run(tmp_path, nodes)
    assert isinstance(outcome.error, DataMissing) and "workload.data.mean and workload.data.std" in str(outcome.error)


@pytest.mark.parametrize("classes", ["bm", "m"])
def test_given_classes_and_moments_are_those_of_all_nodes(tmp_path: Path, classes: str) -> None:
    nodes = {"a": site(tmp_path / "da", "mn"), "b": site(tmp_path / "db", classes, white=90)}
    outcome = run(tmp_path, nodes, classes=["b", "m", "n"], mean=[0.5], std=[0.3])
    assert outcome.error is None and outcome.summary.status == "done"


def test_the_same_data_on_every_node_needs_no_settings(tmp_path: Path) -> None:
    nodes = {"a": site(tmp_path / "da", "bm"), "b": site(tmp_path / "db", "bm")}
    assert run(tmp_path, nodes).summary.status == "done"
