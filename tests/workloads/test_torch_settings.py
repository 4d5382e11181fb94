"""The workload `torch` by settings alone: its sources and models give the bits of the same objects in Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from own_models import QUICK, Net, X, Y, made_net
from safetensors.numpy import save_file

import fedloom
from fedloom.core.errors import ConfigError, DataMissing, PluginInvalid
from fedloom.core.records import Array, Info
from fedloom.testing.workload import WorkloadConformance

NET = """
import numpy as np
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)

def examples():
    return np.load("x.npy"), np.load("y.npy")

def mean_error(outputs, targets):
    return (outputs - nn.functional.one_hot(targets, 2)).abs().mean()
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The examples in each form, and a model of the user's."""
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "label": Y})
    frame.to_csv(tmp_path / "table.csv", index=False, sep=";")
    frame.to_parquet(tmp_path / "table.parquet")
    whole = datasets.Dataset.from_pandas(frame)
    whole.save_to_disk(tmp_path / "saved")
    parts = {"train": whole.select(range(40)), "test": whole.select(range(40, 60))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "parts")
    datasets.DatasetDict({"other": whole}).save_to_disk(tmp_path / "other")
    np.savez(tmp_path / "arrays.npz", x=X, y=Y)
    np.savez(tmp_path / "split.npz", x=X[:40], y=Y[:40], x_test=X[40:], y_test=Y[40:])
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return tmp_path


def experiment(workload: dict[str, Any]) -> fedloom.Experiment:
    return fedloom.Experiment(
        rounds=2, clients=3, strategy="fedavg", runtime={"name": "inline"}, workload={"name": "torch", **workload}
    )


def sha(**workload: Any) -> str | None:
    return fedloom.run(experiment({"model": "./net.py:Net", **workload}), keep=False).summary.model_sha256


def own(data: Any = (X, Y), **more: Any) -> str | None:
    return fedloom.run(**{"model": Net, "data": data, **QUICK, **more}).summary.model_sha256


SOURCES: dict[str, dict[str, Any]] = {
    "csv": {"source": "csv", "file": "table.csv", "delimiter": ";"},
    "parquet": {"source": "parquet", "file": "table.parquet"},
    "columns": {"source": "parquet", "file": "table.parquet", "features": ("a", "b", "c")},
    "npz": {"source": "npz", "file": "arrays.npz"},
    "npy": {"source": "npy", "inputs": "x.npy", "targets": "y.npy"},
    "huggingface": {"source": "huggingface", "dataset": "saved"},
    "a function": {"source": "dataset", "train": "./net.py:examples"},
}


@pytest.mark.parametrize("data", SOURCES.values(), ids=SOURCES)
def test_a_source_gives_the_bits_of_the_same_arrays(files: Path, data: dict[str, Any]) -> None:
    assert sha(data=data) == own()


@pytest.mark.parametrize(
    "data", [{"source": "npz", "file": "split.npz"}, {"source": "huggingface", "dataset": "parts"}], ids=["npz", "hub"]
)
def test_a_test_set_is_not_trained_on(files: Path, data: dict[str, Any]) -> None:
    assert sha(data=data) == own(((X[:40], Y[:40]), (X[40:], Y[40:])))


@pytest.mark.parametrize(
    ("name", "targets", "arrays", "metrics"),
    [
        ("logistic", Y, {"0.weight": (2, 3), "0.bias": (2,)}, {"loss", "accuracy"}),
        ("mlp", Y, {"0.weight": (8, 3), "0.bias": (8,), "2.weight": (2, 8), "2.bias": (2,)}, {"loss", "accuracy"}),
        ("logistic", X[:, 0], {"0.weight": (1, 3), "0.bias": (1,)}, {"loss", "mae"}),
        ("logistic", np.stack([Y, Y], 1), {"0.weight": (2, 3), "0.bias": (2,)}, {"loss", "accuracy"}),
    ],
    ids=["classes", "hidden layer", "numbers", "labels"],
)
def test_models_for_tables_fit_the_targets(
    files: Path, name: str, targets: Array, arrays: dict[str, tuple[int, ...]], metrics: set[str]
) -> None:
    np.save("y.npy", targets)
    made = experiment({"model": name, "mlp": {"hidden": (8,)}, "data": SOURCES["npy"]})
    result = fedloom.run(made, keep=False)
    assert {key: value.shape for key, value in result.arrays.items()} == arrays and result.metrics.keys() == metrics
    assert len(result.predict(X)) == 60


def test_text_labels_are_classes(files: Path) -> None:
    frame = pd.read_csv("table.csv", sep=";").assign(label=np.where(Y, "yes", "no"))
    frame.to_csv("table.csv", index=False, sep=";")
    assert sha(data=SOURCES["csv"]) == own()


def test_a_run_starts_from_a_file_or_another_run(files: Path) -> None:
    weights = {name: tensor.detach().numpy() for name, tensor in made_net().state_dict().items()}
    save_file(weights, "start.safetensors")
    assert sha(data=SOURCES["npz"], pretrained="start.safetensors") == own(model=made_net())
    first = fedloom.run(experiment({"model": "./net.py:Net", "data": SOURCES["npz"]}), out="first")
    net = made_net()
    first.load_into(net)
    assert sha(data=SOURCES["npz"], pretrained="first") == own(model=net)


def test_a_loss_may_be_named(files: Path) -> None:
    assert sha(data=SOURCES["npz"], loss="./net.py:mean_error") != own()


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no data": ({"data": None}, ConfigError, "workload.data: required, but missing"),
    "no model": ({"model": None}, ConfigError, "workload.model: required, but missing"),
    "no file": ({"data": {"source": "csv", "file": "none.csv"}}, DataMissing, "file 'none.csv' not found"),
    "no folder": ({"data": {"source": "huggingface", "dataset": "none"}}, DataMissing, "folder 'none' not found"),
    "not saved": ({"data": {"source": "huggingface", "dataset": "."}}, DataMissing, "not a folder written by save_to"),
    "no split": ({"data": {"source": "huggingface", "dataset": "other"}}, DataMissing, "'train', found other"),
    "no array": ({"data": {**SOURCES["npz"], "inputs": "z"}}, DataMissing, "expected an array 'z', found x, y"),
    "no column": ({"data": {**SOURCES["csv"], "label": "z"}}, DataMissing, "no column 'z', only a, b, c, label"),
    "not an archive": ({"data": {"source": "npz", "file": "net.py"}}, DataMissing, "not a NumPy archive"),
    "no class": ({"model": "./net.py:Nett"}, PluginInvalid, "expected a class or function 'Nett'; found Net, examples"),
    "no name": ({"model": "./net.py"}, ConfigError, 'expected "./FILE.py:NAME"'),
    "no module": ({"model": "./none.py:Net"}, ConfigError, "file './none.py' not found"),
    "a model for other data": ({"model": "./net.py:examples"}, PluginInvalid, "found a tuple, expected a torch.nn"),
}


@pytest.mark.parametrize(("changed", "kind", "said"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_said_before_the_first_round(
    files: Path, changed: dict[str, Any], kind: type[Exception], said: str
) -> None:
    settings = {"model": "./net.py:Net", "data": SOURCES["npz"], **changed}
    with pytest.raises(kind) as caught:
        fedloom.run(experiment({key: value for key, value in settings.items() if value is not None}), out="run")
    assert said in str(caught.value) and not Path("run").exists()


def test_settings_import_no_pytorch(files: Path) -> None:
    code = "import sys, fedloom.workloads.torch.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SMALL: Info = {"model": "logistic", "data": SOURCES["npz"], "training": {"max_steps": 3}}


class TestConformance(WorkloadConformance):
    name = "torch"
    settings: Info = SMALL

    @pytest.fixture(autouse=True)
    def _in_its_folder(self, files: Path) -> None:
        """The settings name files of the working folder."""
