"""Workloads of users with a PyTorch model: what `dataset` may return, what follows from it, and mistakes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support_rounds import train

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, PluginInvalid
from fedloom.core.plugins import build_workload
from fedloom.core.records import MODEL, Info, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.testing.workload import WorkloadConformance

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "tumours.py")
HEAD = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from fedloom.torch import Examples, TorchConfig as Config, TorchWorkload

X = np.random.default_rng(0).normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 1)

class Mine(TorchWorkload[Config]):
    def model(self):
        return nn.Linear(3, 3)

    def dataset(self):
        return X, Y
"""
TAIL = "\nbuild_workload = Mine\n"
Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Builds the workload of a file whose class has other methods than the plain one's."""

    def made(methods: str = "", *, head: str = HEAD, tail: str = TAIL, clients: int = 4, **workload: Any) -> Any:
        path = tmp_path / f"mine_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(head + textwrap.indent(textwrap.dedent(methods), "    ") + tail, encoding="utf-8")
        base = {"rounds": 2, "clients": clients, "strategy": "fedavg"}
        experiment = Experiment.parse({**base, "workload": {"name": str(path), **workload}})
        return build_workload(experiment.workload, experiment)

    return made


SMALL: Info = {"hidden": 4, "training": {"max_steps": 3}}


class TestExample(WorkloadConformance):
    name = EXAMPLE
    settings = SMALL


class TestDataset:
    def test_one_table_is_dealt_and_a_fifth_is_held_out(self, make: Make) -> None:
        workload = make(partition={"scheme": "iid"})
        info = workload.describe()
        assert info.client_sizes == [8] * 4 and workload.held_out(0, 1).num_examples == 8
        assert info.data["held_out"] == "0.2 of the examples, drawn by the seed" and info.data["name"] == "Mine"
        held = generator(1, "dataset", "held_out", 0).permutation(40)[:8]
        (inputs,), targets = workload.data.test.batch(torch.arange(8))
        x = np.random.default_rng(0).normal(size=(40, 3))
        np.testing.assert_array_equal(inputs.numpy(), x[np.sort(held)].astype(np.float32))
        assert targets.dtype == torch.int64
        assert np.sum(info.label_counts) == 32 and info.label_names == ("0", "1", "2")

    @pytest.mark.parametrize(
        "source",
        [
            "TensorDataset(torch.tensor(X).float(), torch.tensor(Y))",
            "Items()",
            "(torch.tensor(X), torch.tensor(Y).int())",
            "Examples(train=(X.astype(np.float16).astype(np.float64) * 0 + X, Y.astype(np.uint8)))",
            "(X.astype('>f8'), Y.astype(np.uint32))",
        ],
    )
    def test_the_same_examples_in_another_form_give_the_same_bits(self, make: Make, source: str) -> None:
        items = """
class Items(Dataset):
    def __len__(self):
        return len(X)
    def __getitem__(self, row):
        return X[row].astype(np.float32), int(Y[row])
"""
        bits = []
        for head in (HEAD, HEAD.replace("return X, Y", f"return {source}") + ""):
            workload = make(head=head.replace("\nclass Mine", items + "\nclass Mine"))
            bits.append(arrays_sha256(train(workload, workload.init(generator(1, "init")), 2).groups[MODEL]))
        assert bits[0] == bits[1]

    def test_a_list_is_the_clients_and_each_gives_a_fifth(self, make: Make) -> None:
        head = HEAD.replace("return X, Y", "return [(X[:10], Y[:10]), (X[10:30], Y[10:30]), (X[30:], Y[30:])]")
        workload = make(head=head, clients=3)
        assert workload.describe().client_sizes == [8, 16, 8] and workload.held_out(0, 1).num_examples == 8
        x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
        (inputs,), _ = workload.data.train.batch(torch.from_numpy(workload.shard(1).rows))
        assert {tuple(row) for row in inputs.numpy()} <= {tuple(row) for row in x[10:30]}
        with pytest.raises(ConfigError, match=r"clients: the experiment has 4, but dataset\(\) lists examples of 3"):
            make(head=head)

    def test_a_function_loads_a_client_where_it_is(self, make: Make, tmp_path: Path) -> None:
        loads = f"""
        def dataset(self):
            return Examples(train=self.load, test=(X, Y))

        def load(self, client):
            with open({str(tmp_path / "log")!r}, "a") as log:
                log.write(f"{{client}} ")
            return X[client::4], Y[client::4]
        """
        head = HEAD[: HEAD.index("    def dataset")]
        workload = make(loads, head=head)
        info = workload.describe()
        assert not (tmp_path / "log").exists() and info.client_sizes == [] and info.data["num_test"] == 40
        record = workload.init(generator(1, "init"))
        update = train(workload, record, 3)
        assert update.num_examples == 10 and (tmp_path / "log").read_text(encoding="utf-8") == "3 "
        whole = make()
        (inputs,), _ = workload.data.train.batch(torch.from_numpy(workload.shard(2).rows))
        del whole
        np.testing.assert_array_equal(
            inputs.numpy(), np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)[2::4]
        )
        assert workload.evaluate({MODEL: record}, workload.shard(1))["loss"].weight == 10

    def test_two_inputs_are_two_arguments(self, make: Make) -> None:
        two = """
        def model(self):
            class Both(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.a, self.b = nn.Linear(3, 3), nn.Embedding(3, 3)
                def forward(self, x, code):
                    return self.a(x) + self.b(code)
            return Both()

        def dataset(self):
            return X, Y, Y
        """
        workload = make(two, head=HEAD[: HEAD.index("    def model")])
        record = workload.init(generator(1, "init"))
        update = train(workload, record, 0)
        assert set(update.groups[MODEL]) == {"a.weight", "a.bias", "b.weight"}

    def test_a_regression_has_its_own_loss_and_no_accuracy(self, make: Make) -> None:
        methods = """
        def loss(self, outputs, targets):
            return F.mse_loss(outputs, targets)
        """
        head = HEAD.replace("nn.Linear(3, 3)", "nn.Linear(3, 2)").replace("return X, Y", "return X, X[:, :2]")
        workload = make(methods, head=head)
        record, shard = workload.init(generator(1, "init")), workload.held_out(0, 1)
        metrics = workload.evaluate({MODEL: record}, shard)
        (inputs,), targets = workload.data.test.batch(torch.arange(8))
        arrays = record.groups[MODEL]
        want = np.mean((inputs.numpy() @ arrays["weight"].T + arrays["bias"] - targets.numpy()) ** 2)
        assert list(metrics) == ["loss"] and metrics["loss"].value == pytest.approx(want, rel=1e-5)
        with pytest.raises(ConfigError, match=r"workload.partition.scheme: 'dirichlet' splits examples by class"):
            make(methods, head=head, partition={"scheme": "dirichlet"})


def test_a_folder_keeps_torch_from_whoever_reads_its_settings(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "net"
    folder.mkdir(parents=True)
    files = {
        "__init__.py": '"""Mine."""\n',
        "config.py": "from fedloom.torch import TorchConfig\n\n\nclass Config(TorchConfig):\n    width: int = 3\n",
        "workload.py": HEAD.replace("TorchConfig as Config, ", "").replace(
            "X = np", "from mine.net.config import Config\n\nX = np"
        )
        + TAIL,
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    experiment = 'Experiment.parse({"rounds": 1, "clients": 2, "strategy": "fedavg", "workload": "mine.net"})'
    code = (
        "import sys; from fedloom.core.config import Experiment; from fedloom.core.plugins import build_workload\n"
        f"experiment = {experiment}; assert 'torch' not in sys.modules\n"
        "print(build_workload(experiment.workload, experiment).describe().client_sizes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.stdout.strip() == "[16, 16]", done.stderr


MISTAKES: dict[str, tuple[str, str, str]] = {
    # what: (replaced, by, what the message says)
    "no model": (
        "    def model(self):\n        return nn.Linear(3, 3)\n",
        "",
        r"the class has no method model; expected",
    ),
    "no dataset": ("    def dataset(self):\n        return X, Y\n", "", r"no method dataset; expected dataset\(self\)"),
    "misspelt": ("return X, Y", "return X, Y\n    def metric(self, outputs, targets):\n        return {}", "'metrics'"),
    "class for a module": ("nn.Linear(3, 3)", "nn.Linear", r"found the class Linear, expected .*return Linear\("),
    "no module": ("nn.Linear(3, 3)", "None", "found None, expected a torch.nn.Module"),
    "nothing to train": ("nn.Linear(3, 3)", "nn.ReLU()", "without a trainable parameter"),
    "empty": ("return X, Y", "return X[:0], Y[:0]", "the examples have length 0, expected at least one"),
    "empty dataset": ("return X, Y", "return TensorDataset(torch.zeros(0, 3), torch.zeros(0))", "have length 0"),
    "one of several empty": (
        "return X, Y",
        "return [(X, Y), (X, Y), (X[:0], Y[:0]), (X, Y)]",
        "client 2 have length 0",
    ),
    "no targets": ("return X, Y", "return (X,)", r"tuple of 1, expected inputs and targets \(x, y\)"),
    "an array alone": ("return X, Y", "return X", r"are a ndarray, expected a tuple \(x, y\)"),
    "lengths": ("return X, Y", "return X, Y[:39]", r"shapes \(40, 3\), \(39,\); expected as many inputs as targets"),
    "list of numbers": ("return X, Y", "return X, Y.tolist()", "entry 1 of the examples is a list, expected a NumPy"),
    "text": ("return X, Y", "return X.astype(str), Y", "entry 0 .*dtype <U.*, expected numbers"),
    "label names": ("return X, Y", "return X, np.array(['a', 'b'] * 20)", r"dtype <U1, .*np.unique\(y, return_inverse"),
    "float labels": ("return X, Y", "return X, Y.astype(float)", r"targets are float32 numbers.*y.astype\(np.int64\)"),
    "column of labels": ("return X, Y", "return X, Y[:, None]", r"shape \('n', 1\), expected \(n,\).*y.ravel\(\)"),
    "negative label": ("return X, Y", "return X, Y - 1", "a target is -1, expected classes numbered from 0"),
    "too few outputs": ("nn.Linear(3, 3)", "nn.Linear(3, 2)", r"output has shape \(2, 2\), expected \(2, 3\)"),
    "flat output": (
        "nn.Linear(3, 3)",
        "nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))",
        r"\(2,\), expected \(2, 3\)",
    ),
    "one row": ("nn.Linear(3, 3)", "nn.Sequential(nn.Linear(3, 3), nn.Flatten(0))", r"\(6,\) for 2 examples, expected"),
    "tuple of outputs": (
        "nn.Linear(3, 3)",
        "nn.LSTM(3, 3)",
        "a tuple, expected a torch.Tensor; define outputs",
    ),
    "wrong width": ("nn.Linear(3, 3)", "nn.Linear(4, 3)", r"called with float32 \(2, 3\): RuntimeError: mat1 and mat2"),
    "own exception": ("return X, Y", "return open('/nowhere/x.npy')", r"line \d+: Mine.dataset: FileNotFoundError"),
    "loss as a number": (
        "return X, Y",
        "return X, Y\n    def loss(self, outputs, targets):\n        return F.cross_entropy(outputs, targets).item()",
        r"found a float, expected a torch.Tensor without dimensions",
    ),
    "loss of each": (
        "return X, Y",
        "return X, Y\n    def loss(self, outputs, targets):\n        return (outputs - targets[:, None]).sum(1)",
        r"shape \(2,\), expected one number, .*loss.mean\(\)",
    ),
    "loss without gradient": (
        "return X, Y",
        "return X, Y\n    def loss(self, outputs, targets):\n        return F.cross_entropy(outputs.detach(), targets)",
        "does not depend on the model's weights",
    ),
    "metrics of each": (
        "return X, Y",
        "return X, Y\n    def metrics(self, outputs, targets):\n        return {'right': outputs.argmax(1) == targets}",
        r"metric 'right' is a Tensor of shape \(2,\), expected one number",
    ),
    "items": ("return X, Y", "return TensorDataset(torch.tensor(X))", r"item 0 is|item 0 has"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_refused_with_file_and_line(make: Make, tmp_path: Path, what: str) -> None:
    old, new, words = MISTAKES[what]
    assert old in HEAD
    with pytest.raises(PluginInvalid, match=words) as caught:
        make(head=HEAD.replace(old, new))
    assert str(tmp_path / "mine_0.py") in str(caught.value) and "line " in str(caught.value)
