# ruff: noqa: E501  # a mistake is a line
"""Mistakes in a user's model, data set, loss and `TorchWorkload`: `check`, `run` and `submit` name the file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mistakes import expect_refusal, through_commands

from fedloom.cli import main

PARTS = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)

class Rows(Dataset):
    def __init__(self):
        self.x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], int(self.x[row, 0] > 0)

def examples():
    return Rows()

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)
"""
SUBCLASS = (
    PARTS
    + """
from fedloom.torch import Examples, TorchConfig, TorchWorkload

class Config(TorchConfig):
    width: int = 3

class Own(TorchWorkload[Config]):
    def model(self):
        return Net()

    def dataset(self):
        return examples()

    def loss(self, outputs, targets):
        return loss(outputs, targets)

    def metrics(self, outputs, targets):
        return {"loss": self.loss(outputs, targets) * len(targets)}

    def augment(self, inputs):
        return inputs

    def outputs(self, model, *inputs):
        return model(*inputs)

build_workload = Own
"""
)
FORWARD, ITEM, LOSS = (
    "        return self.layer(x)\n",
    "        return self.x[row], int(self.x[row, 0] > 0)\n",
    "    return nn.functional.cross_entropy(outputs, targets)\n",
)
METRICS = '        return {"loss": self.loss(outputs, targets) * len(targets)}\n'

MISTAKES: dict[str, tuple[str, str, str, str, str]] = {
    # where it is used, what stands there, what stands there instead, a text of the line that is named, what is said
    "a model that is not begun": ("parts", "        super().__init__()\n", "", "self.layer = ", "cannot assign module before Module.__init__() call"),
    "a model with arguments": ("parts", "def __init__(self):\n        super()", "def __init__(self, width):\n        super()", "class Net", "missing 1 required positional argument: 'width'"),
    "a model of other inputs": ("parts", "nn.Linear(3, 2)", "nn.Linear(4, 2)", "return self.layer(x)", "mat1 and mat2 shapes cannot be multiplied"),
    "a model that returns nothing": ("parts", FORWARD, "        self.layer(x)\n", "class Net", "returned None, expected a torch.Tensor"),
    "a model that returns a tuple": ("parts", FORWARD, "        return self.layer(x), x\n", "class Net", "returned a tuple, expected a torch.Tensor"),
    "a model that averages its batch": ("parts", FORWARD, "        return self.layer(x).mean(0, keepdim=True)\n", "class Net", "has shape (1, 2) for 2 examples"),
    "a model without parameters": ("parts", "self.layer = nn.Linear(3, 2)", "self.layer = nn.Flatten()", "class Net", "without a trainable parameter"),
    "a frozen model": ("parts", "self.layer = nn.Linear(3, 2)", "self.layer = nn.Linear(3, 2).requires_grad_(False)", "class Net", "without a trainable parameter"),
    "a model of 64 bits": ("parts", "self.layer = nn.Linear(3, 2)", "self.layer = nn.Linear(3, 2).double()", "return self.layer(x)", "must have the same dtype"),
    "a model that raises": ("parts", FORWARD, "        return self.layers(x)\n", "self.layers(x)", "has no attribute 'layers'"),
    "a model that is no module": ("parts", "class Net(nn.Module)", "class Net(list)", "class Net", "found a Net, expected a torch.nn.Module"),
    "outputs for fewer classes": ("parts", "int(self.x[row, 0] > 0)", "row % 5", "class Net", "expected (2, 5): one number for each class"),
    "no syntax": ("parts", "class Net(nn.Module):", "class Net(nn.Module)", "class Net", "SyntaxError"),
    "no import": ("parts", "import numpy as np", "import nunpy as np", "nunpy", "No module named 'nunpy'"),
    "a data set without a length": ("parts", "    def __len__(self):\n        return len(self.x)\n\n", "", "class Rows", "__len__"),
    "a data set that is too long": ("parts", "return len(self.x)", "return len(self.x) + 9", "return self.x[row]", "IndexError"),
    "a data set without examples": ("parts", "size=(40, 3)", "size=(0, 3)", "def examples", "expected at least one"),
    "items without targets": ("parts", ITEM, "        return self.x[row]\n", "def __getitem__", "expected a tuple (x, y)"),
    "items that are dicts": ("parts", ITEM, '        return {"x": self.x[row]}\n', "def __getitem__", "expected a tuple (x, y)"),
    "items of other shapes": ("parts", ITEM, "        return self.x[row][: 1 + row % 3], 0\n", "def __getitem__", "differ"),
    "targets that are words": ("parts", ITEM, '        return self.x[row], "yes"\n', "def __getitem__", "str"),
    "targets below 0": ("parts", ITEM, "        return self.x[row], row % 2 - 1\n", "def examples", "a target is -1"),
    "an item that raises": ("parts", ITEM, "        return self.y[row], 0\n", "self.y[row]", "has no attribute 'y'"),
    "no data": ("parts", "    return Rows()\n", "    Rows()\n", "def examples", "found None"),
    "a loader": ("parts", "    return Rows()\n", "    return DataLoader(Rows())\n", "def examples", "found a DataLoader"),
    "a generator": ("parts", "    return Rows()\n", "    return (each for each in Rows())\n", "def examples", "found a generator"),
    "data with arguments": ("parts", "def examples()", "def examples(client)", "def examples", "missing 1 required positional argument: 'client'"),
    "targets of another length": ("parts", "    return Rows()\n", "    return np.zeros((9, 3)), np.zeros(8, int)\n", "def examples", "found [9, 8]"),
    "inputs that are words": ("parts", "    return Rows()\n", "    return np.array([['a'] * 3] * 9), np.zeros(9, int)\n", "def examples", "expected numbers"),
    "a loss for each example": ("parts", LOSS, LOSS.replace("targets)", 'targets, reduction="none")'), "def loss", "expected one number, the mean over the minibatch"),
    "a loss that is a number": ("parts", LOSS, LOSS.replace("targets)", "targets).item()"), "def loss", "do not call .item() on it"),
    "a loss without a gradient": ("parts", LOSS, LOSS.replace("outputs,", "outputs.detach(),"), "def loss", "no gradient"),
    "a loss that returns nothing": ("parts", LOSS, LOSS.replace("return ", ""), "def loss", "found None"),
    "a loss of one argument": ("parts", "def loss(outputs, targets)", "def loss(outputs)", "def loss", "takes 1 positional argument but 2 were given"),
    "a loss that raises": ("parts", LOSS, LOSS.replace("targets)", "targets[:1])"), "nn.functional.cross_entropy", "batch_size"),
    "no model": ("subclass", "    def model(self):\n        return Net()\n\n", "", "class Own", "no method model"),
    "a misspelt method": ("subclass", "def dataset(self)", "def datasets(self)", "def datasets", "expected 'dataset'?"),
    "a class as model": ("subclass", "        return Net()\n", "        return Net\n", "def model", "found the class Net"),
    "no model returned": ("subclass", "        return Net()\n", "        Net()\n", "def model", "found None, expected a torch.nn.Module"),
    "a loader as data": ("subclass", "        return examples()\n", "        return DataLoader(examples())\n", "def dataset", "are a DataLoader"),
    "a tensor as data": ("subclass", "        return examples()\n", "        return torch.zeros(9, 3)\n", "def dataset", "are a Tensor"),
    "a method that raises": ("subclass", "        return examples()\n", "        return self.rows\n", "self.rows", "has no attribute 'rows'"),
    "metrics that are a list": ("subclass", METRICS, METRICS.replace('{"loss": ', "[").replace("}", "]"), "def metrics", "expected a dict of name and sum"),
    "metrics for each example": ("subclass", METRICS, METRICS.replace("self.loss(outputs, targets) * len(targets)", "outputs"), "def metrics", "expected one number: a sum"),
    "metrics that raise": ("subclass", METRICS, METRICS.replace("len(targets)", "targets.size"), "targets.size", "TypeError"),
    "outputs that are none": ("subclass", "        return model(*inputs)\n", "        model(*inputs)\n", "", "returned None, expected a torch.Tensor"),
    "changed inputs that are no tuple": ("subclass", "        return inputs\n", "        return inputs[0]\n", "def augment", "expected a tuple"),
    "changed inputs of other length": ("subclass", "        return inputs\n", "        return (inputs[0][:1],)\n", "def augment", "expected a tuple"),
    "a label too many": ("subclass", "        return examples()\n", "        return Examples(train=examples(), label_names=('a',))\n", "def dataset", "label_names has 1 names"),
    "groups of another length": ("subclass", "        return examples()\n", "        return Examples(train=examples(), groups=(0, 1))\n", "def dataset", "groups has 2 entries"),
    "a share above 1": ("subclass", "        return examples()\n", "        return Examples(train=examples(), test_fraction=20)\n", "def dataset", "test_fraction from 0 to below 1, got 20"),
    "a Config of another base": ("subclass", "class Config(TorchConfig)", "class Config", "class Config", "Config"),
}  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[[str, str, str], tuple[Path, Path]]:
    """Writes code with a mistake, and an experiment that names it."""

    def written(used: str, old: str, new: str) -> tuple[Path, Path]:
        source = SUBCLASS if used == "subclass" else PARTS
        assert source.count(old) >= 1, old
        code, toml = tmp_path / "mine.py", tmp_path / "mine.toml"
        code.write_text(source.replace(old, new, 1), encoding="utf-8")
        own_loss = 'loss = "./mine.py:loss"\n' if "loss" in new or "cross_entropy" in new else ""
        data = '[workload.data]\nsource = "dataset"\ntrain = "./mine.py:examples"\n'
        named = {
            "subclass": 'workload = "./mine.py"\n',
            "parts": f'[workload]\nname = "torch"\nmodel = "./mine.py:Net"\n{own_loss}{data}',
        }
        base = 'rounds = 2\nclients = 4\ncohort = 2\nstrategy = "fedavg"\nruntime = { name = "inline" }\n'
        toml.write_text(base + named[used], encoding="utf-8")
        return code, toml

    return written


@pytest.mark.parametrize(("used", "old", "new", "at", "said", "command"), through_commands(MISTAKES))
def test_a_mistake_is_named(
    used: str,
    old: str,
    new: str,
    at: str,
    said: str,
    command: str,
    experiment: Callable[[str, str, str], tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, toml = experiment(used, old, new)
    expect_refusal(command, toml, code, at, said, capsys)


def test_sound_code_passes(experiment: Callable[..., tuple[Path, Path]], capsys: pytest.CaptureFixture[str]) -> None:
    for used in ("parts", "subclass"):
        _, toml = experiment(used, "", "")
        assert main(["check", str(toml)]) == 0, capsys.readouterr().err
