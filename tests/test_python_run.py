"""Runs of a program's own model and data: what may be given, what is inferred, where it comes to the workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from own_models import QUICK, Net, X, Y, made_net, table
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import fedloom
from fedloom.core.errors import BadUpdate, ConfigError, PluginInvalid, UsageError
from fedloom.core.records import Array, arrays_sha256
from fedloom.core.run_files import EXPERIMENT
from fedloom.core.seeds import generator
from fedloom.result import RunResult
from fedloom.simulation import nursery_start


def sha(**arguments: Any) -> str | None:
    return fedloom.run(**{"model": made_net(), "data": table(), **QUICK, **arguments}).summary.model_sha256


class Items(Dataset[tuple[Array, int]]):
    """The data as items."""

    def __init__(self, rows: slice = slice(None)) -> None:
        self.x, self.y = X[rows], Y[rows]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Array, int]:
        return self.x[row], int(self.y[row])


def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "kind": Y})


def hub() -> Any:
    from datasets import Dataset as HubDataset

    return HubDataset.from_dict({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "label": Y})


def wide_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))


def from_0_to_1(pixels: Any) -> Array:
    return np.asarray(pixels, np.float32) / np.float32(255)


class TestData:
    @pytest.mark.parametrize(
        ("data", "more"),
        [
            (lambda: (torch.tensor(X), torch.tensor(Y)), {}),
            (lambda: (X.astype(np.float64), Y.astype(np.uint8)), {}),
            (lambda: (X.tolist(), Y.tolist()), {}),
            (lambda: TensorDataset(torch.tensor(X), torch.tensor(Y)), {}),
            (Items, {}),
            (frame, {"label": "kind"}),
            (lambda: (frame()[["a", "b", "c"]], frame()["kind"]), {}),
            (lambda: frame().assign(extra=1.0), {"label": "kind", "columns": ("a", "b", "c")}),
            (lambda: frame().assign(kind=np.where(Y, "yes", "no")), {"label": "kind"}),
            (hub, {}),
        ],
        ids=["tensors", "other dtypes", "lists", "TensorDataset", "Dataset", "frame", "frame and series", "columns",
             "labels in words", "hub"],
    )  # fmt: skip
    def test_the_same_examples_in_another_form_give_the_same_bits(self, data: Callable[[], Any], more: Any) -> None:
        assert sha(data=data(), **more) == sha()

    def test_a_pair_is_training_and_test_and_so_is_test(self) -> None:
        first, second = table(40), (X[40:], Y[40:])
        pair = fedloom.run(model=made_net(), data=(first, second), **QUICK)
        assert pair.summary == fedloom.run(model=made_net(), data=first, test=second, **QUICK).summary.model_copy(
            update={name: vars(pair.summary)[name] for name in ("run_id", "seconds")}
        )
        assert (pair.predict(X[40:]) == Y[40:]).mean() == pytest.approx(pair.metrics["accuracy"])

    def test_a_list_is_the_clients(self) -> None:
        parts = [(X[:10], Y[:10]), (X[10:30], Y[10:30]), (X[30:], Y[30:])]
        quick = {**QUICK, "test": table()}
        del quick["clients"]
        result = fedloom.run(model=made_net(), data=parts, **quick)
        assert result.experiment.clients == 3 and result.history[0].num_examples == 60
        with pytest.raises(ConfigError, match=r"clients: the data is a list .* each of 3 clients, got 4"):
            fedloom.run(model=made_net(), data=parts, **{**quick, "clients": 4})

    def test_a_function_loads_each_client_where_it_is(self) -> None:
        result = fedloom.run(model=made_net(), data=lambda client: (X[client::3], Y[client::3]), test=table(), **QUICK)
        assert result.history[0].num_examples == 60

    def test_a_fifth_is_held_out_and_the_run_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        fedloom.run(model=made_net(), data=table(), **{key: QUICK[key] for key in QUICK if key != "sinks"})
        said = capsys.readouterr().out
        assert "48 for training, 12 held out" in said
        assert "no test set was given: held out 0.2 of the examples, drawn by the seed" in said
        assert "inferred classification, trained by cross-entropy" in said

    def test_a_transform_prepares_each_input_for_prediction_too(self) -> None:
        plain = fedloom.run(model=made_net(), data=(X * 2, Y), **QUICK)
        made = fedloom.run(model=made_net(), data=(X, Y), transform=lambda x: x * 2, **QUICK)
        assert made.summary.model_sha256 == plain.summary.model_sha256
        np.testing.assert_array_equal(made.predict(X), plain.predict(X * 2))

    def test_images_of_a_hub_set_become_channels_first_from_0_to_1(self) -> None:
        from datasets import Array3D, ClassLabel, Features, Image
        from datasets import Dataset as HubDataset

        pixels = np.random.default_rng(1).integers(0, 255, (12, 3, 4, 4)).astype(np.uint8)
        label = ClassLabel(names=["cat", "dog"])
        values = {"image": pixels.tolist(), "label": [0, 1] * 6}
        made = []
        for kind, picture in ((Array3D((3, 4, 4), "uint8"), pixels), (Image(), pixels.transpose(0, 2, 3, 1))):
            values["image"] = list(picture)
            data = HubDataset.from_dict(values, features=Features({"image": kind, "label": label}))
            scale = None if isinstance(kind, Image) else from_0_to_1
            more: Any = {} if scale is None else {"transform": scale}
            made.append(fedloom.run(model=wide_net, data=data, **QUICK, **more))
        assert made[0].summary.model_sha256 == made[1].summary.model_sha256
        assert made[1].predict(pixels.astype(np.float32) / 255).shape == (12,)


class TestTask:
    def one(self, outputs: int, y: Array, **more: Any) -> RunResult:
        return fedloom.run(model=lambda: nn.Linear(3, outputs), data=(X, y), **{**QUICK, **more})

    @pytest.mark.parametrize(
        ("outputs", "y", "metrics"),
        [
            (2, Y, {"loss", "accuracy"}),
            (2, Y.astype(np.float64), {"loss", "accuracy"}),
            (1, Y, {"loss", "accuracy"}),
            (1, X[:, 0], {"loss", "mae"}),
            (1, Y * 7, {"loss", "mae"}),
            (2, X[:, :2], {"loss", "mae"}),
            (2, np.stack([Y, 1 - Y * 0], axis=1), {"loss", "accuracy"}),
        ],
        ids=["classes", "classes as floats", "yes or no", "numbers", "whole numbers, one output", "vectors", "labels"],
    )
    def test_it_is_inferred_from_targets_and_outputs(self, outputs: int, y: Array, metrics: set[str]) -> None:
        result = self.one(outputs, y)
        assert result.metrics.keys() == metrics
        assert result.history[1].metrics["loss"] < result.history[0].metrics["loss"], "it learns"

    def test_a_column_of_numbers_is_compared_one_by_one(self) -> None:
        x, y = np.eye(3, dtype=np.float32), np.array([1, 2, 3], np.float32)
        result = fedloom.run(model=lambda: nn.Linear(3, 1), data=(x, y), test=(x, y), **QUICK)
        predicted = result.predict(x)
        assert predicted.shape == (3, 1)
        assert result.metrics["loss"] == pytest.approx(((predicted[:, 0] - [1, 2, 3]) ** 2).mean(), rel=1e-6)

    def test_loss_metrics_and_task_may_be_given(self) -> None:
        def within(outputs: Tensor, targets: Tensor) -> Tensor:
            return ((outputs - targets).abs() < 1).float().mean()

        result = self.one(1, X[:, :1], loss=nn.HuberLoss(), metrics=[within], task="regression")
        assert result.metrics.keys() == {"loss", "within"}
        expected = F.huber_loss(torch.tensor(result.predict(X)), torch.tensor(X[:, :1]))
        whole = self.one(1, X[:, :1], loss=nn.HuberLoss(), metrics={"w": within}, test=(X, X[:, :1]))
        assert whole.metrics["loss"] == pytest.approx(
            F.huber_loss(torch.tensor(whole.predict(X)), torch.tensor(X[:, :1])).item()
        )
        assert expected > 0


class TestTraining:
    def test_one_client_equals_a_plain_loop_of_pytorch(self) -> None:
        def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

        result = fedloom.run(
            model=made_net(),
            data=[table()],
            test=table(),
            optimizer=optimizer,
            training={"batch_size": 16, "epochs": 2},
            **{**QUICK, "clients": 1, "rounds": 3},
        )
        net, x, y = made_net(), torch.tensor(X), torch.tensor(Y)
        for number in (1, 2, 3):
            rng = generator(1, "train", number, 0, 0)
            rng.integers(2**63)
            plain = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2):
                for rows in torch.split(torch.from_numpy(rng.permutation(60)), 16):
                    plain.zero_grad()
                    F.cross_entropy(net(x[rows]), y[rows]).backward()
                    plain.step()
        arrays = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
        assert result.summary.model_sha256 == arrays_sha256(arrays)

    def test_an_optimiser_of_torch_equals_that_of_the_settings_with_a_schedule(self) -> None:
        training = {"round_schedule": {"shape": "cosine"}, "batch_size": 8}
        own = sha(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.2), training=training)
        assert own == sha(training={**training, "learning_rate": 0.2})

    def test_a_model_is_not_changed_and_a_factory_draws_from_the_seed(self) -> None:
        net = made_net()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        fedloom.run(model=net, data=table(), **QUICK)
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert sha(model=Net) == sha(model=lambda: Net()) != sha(model=Net, seed=2)


class TestWorkers:
    def test_a_forked_worker_gives_the_bits_of_this_process(self, tmp_path: Path) -> None:
        """In a process of its own: pytest's may have threads."""
        program = """
            import threading
            import numpy as np
            import sklearn.datasets  # it imports Arrow, whose allocator has a thread that is harmless
            from torch import nn
            import fedloom
            from fedloom.simulation import nursery_start

            class Local(nn.Linear):
                lock = threading.Lock()  # cannot be pickled, so this reaches the workers by fork alone

            def model():
                with Local.lock:
                    return Local(3, 2)

            x = np.random.default_rng(0).normal(size=(60, 3))
            lock = threading.Lock()
            assert nursery_start.may_fork()
            made = {}
            for runtime in ("inline", "process"):
                result = fedloom.run(
                    model=model, data=(x, (x[:, 0] > 0).astype(int)), clients=3, rounds=2, runtime=runtime, workers=2,
                    keep=False, sinks=(), transform=lambda each: each if lock else None,
                )
                made[runtime] = result.summary.model_sha256
            assert made["inline"] == made["process"], made
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            assert not nursery_start.may_fork()
        """
        done = _python(program, tmp_path)
        assert done.returncode == 0, done.stderr

    @pytest.mark.slow
    def test_forked_workers_have_one_thread_each_whatever_the_program_has(self, tmp_path: Path) -> None:
        program = """
            import os
            import threading
            import torch
            from fedloom.simulation import nursery_start

            torch.set_num_threads(4)
            pid = os.fork()
            if not pid:
                nursery_start._become_worker()
                seen = [torch.get_num_threads()]
                thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
                thread.start()
                thread.join()
                os._exit(seen != [1, 1])
            assert os.waitpid(pid, 0)[1] == 0
        """
        done = _python(program, tmp_path)
        assert done.returncode == 0, done.stderr

    @pytest.mark.slow
    def test_a_program_with_threads_sends_them_through_a_pipe(self, tmp_path: Path) -> None:
        (tmp_path / "beside.py").write_text(
            "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.layer = nn.Linear(3, 2)\n\n    def forward(self, x):\n        return self.layer(x)\n",
            encoding="utf-8",
        )
        program = """
            import threading
            import numpy as np
            from beside import Net
            import fedloom

            threading.Thread(target=threading.Event().wait, daemon=True).start()
            x = np.random.default_rng(0).normal(size=(60, 3))
            def run(runtime):
                def double(x):
                    return x * 2

                return fedloom.run(
                    model=Net, data=(x, (x[:, 0] > 0).astype(int)), clients=3, rounds=2, runtime=runtime, workers=1,
                    transform=double, sinks=(), out=f"run-{runtime}",
                ).summary.model_sha256
            assert run("inline") == run("process")
        """
        done = _python(program, tmp_path)
        assert done.returncode == 0, done.stderr
        kept = b"".join(path.read_bytes() for path in (tmp_path / "run-process").rglob("*") if path.is_file())
        assert b"beside" not in kept and b"cloudpickle" not in kept

    @pytest.mark.slow
    def test_ray_gives_the_same_bits(self) -> None:
        assert sha(runtime="ray", workers=2) == sha()

    def test_what_cannot_be_sent_is_said_before_anything_starts(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(nursery_start, "may_fork", lambda: False)
        net = made_net()
        lock = threading.Lock()
        with pytest.raises(UsageError, match=r"model.*: TypeError: cannot pickle"):
            fedloom.run(
                model=net,
                data=table(),
                transform=lambda x: x if lock else None,
                **{**QUICK, "runtime": "process", "keep": True},
            )
        assert not list(tmp_path.rglob("experiment.toml"))

    def test_a_standing_server_takes_no_objects(self, tmp_path: Path) -> None:
        from fedloom.server.run_queue import RunQueue

        experiment = fedloom.run(model=made_net(), data=table(), **QUICK).experiment
        queue = RunQueue(tmp_path, lambda *_: None)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"workload\.objects: .* which a server does not take"):
            queue.submit(experiment.to_dict())
        with pytest.raises(UsageError, match=r"Python objects of the program that called fedloom\.run"):
            fedloom.run(experiment, keep=False)


def _python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(textwrap.dedent(program), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads of OpenMP, which a sum may start, outlive it
    )


class TestResume:
    def test_it_equals_a_run_that_was_not_interrupted(self, tmp_path: Path) -> None:
        quick = {**QUICK, "keep": True}
        fedloom.run(model=made_net(), data=table(), out=tmp_path / "a", **quick)
        longer = fedloom.resume(tmp_path / "a", model=made_net(4), data=table(), overrides=["rounds=4"])
        assert longer.summary.model_sha256 == sha(rounds=4)
        assert (
            longer.predict(X) == fedloom.run(model=made_net(), data=table(), **{**QUICK, "rounds": 4}).predict(X)
        ).all()

    def test_it_compares_what_it_is_given(self, tmp_path: Path) -> None:
        out = tmp_path / "a"
        fedloom.run(model=made_net(), data=table(), out=out, **{**QUICK, "keep": True})
        digests = json.loads(json.dumps(fedloom.Experiment.load(out / EXPERIMENT).to_dict()))["workload"]["objects"]
        assert digests.keys() == {"code", "weights", "data"}
        more = ["rounds=3"]
        with pytest.raises(ConfigError, match=r"test_python_run.py, line \d+: the data is not what the run began with"):
            fedloom.resume(out, model=made_net(), data=table(50), overrides=more)
        with pytest.raises(ConfigError, match="the source of the model"):
            fedloom.resume(out, model=made_net(), data=table(), transform=lambda x: x, overrides=more)
        with pytest.raises(ConfigError, match=r"model, data: .* fedloom\.resume\(folder, model=…, data=…\)"):
            fedloom.resume(out, overrides=more)
        changed = fedloom.resume(out, model=made_net(), data=table(50), overrides=more, as_continuation=True)
        assert len(changed.history) == 3

    def test_code_counts_by_its_source(self) -> None:
        from fedloom.workloads.torch.digests import code_digest

        def one(x: int) -> int:
            return x + 1

        first = one

        def one(x: int) -> int:  # type: ignore[no-redef]
            return x + 2

        assert code_digest([first]) == code_digest([first]) != code_digest([one])
        scale = 2.0
        assert code_digest([lambda x: x * scale]) == code_digest([lambda x: x * scale])
        before, scale = code_digest([lambda x: x * scale]), 3.0
        assert code_digest([lambda x: x * scale]) != before, "what it closes over counts"
        assert code_digest([nn.Linear(3, 2)]) == code_digest([nn.Linear(3, 2)]) != code_digest([nn.Linear(3, 4)])
        assert code_digest([nn.Dropout(0.1)]) != code_digest([nn.Dropout(0.2)])


class TestResult:
    def test_history_is_a_table(self) -> None:
        result = fedloom.run(model=made_net(), data=table(), **QUICK)
        frame = result.history.frame()
        assert list(frame.index) == [1, 2] and frame["accuracy"].iloc[-1] == result.metrics["accuracy"]
        assert frame["train_loss"].tolist() == [record.metrics["loss"] for record in result.history]
        assert result.history._repr_html_().count("<tr>") == 3

    def test_the_weights_go_into_a_module(self) -> None:
        result = fedloom.run(model=made_net(), data=table(), **QUICK)
        net = result.load_into(Net())
        with torch.no_grad():
            np.testing.assert_array_equal(net(torch.tensor(X)).argmax(1).numpy(), result.predict(X))
        with pytest.raises(ConfigError, match="expected the 4 arrays of the model, found 2"):
            result.load_into(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
        wrong = Net()
        wrong.layer = nn.Linear(4, 2)
        with pytest.raises(BadUpdate, match="does not fit"):
            result.load_into(wrong)

    def test_it_is_short_in_a_prompt_and_its_report_is_a_page(self, tmp_path: Path) -> None:
        result = fedloom.run(model=made_net(), data=table(), out=tmp_path / "r", **{**QUICK, "keep": True})
        assert repr(result).startswith("RunResult(Net, 2 rounds, loss 0.") and len(repr(result)) < 200
        assert result.report._repr_html_().startswith("<iframe sandbox srcdoc=")
        with pytest.raises(UsageError, match="no report"):
            _ = fedloom.run(model=made_net(), data=table(), **QUICK).report

    def test_a_frame_is_predicted_by_the_columns_trained_on(self) -> None:
        result = fedloom.run(model=made_net(), data=frame(), label="kind", **QUICK)
        shuffled = frame()[["kind", "c", "a", "b"]]
        np.testing.assert_array_equal(result.predict(shuffled), result.predict(X))

    def test_any_run_of_a_pytorch_model_predicts(self) -> None:
        experiment = fedloom.Experiment(
            rounds=1, clients=2, strategy="fedavg", workload="image_classification", runtime={"name": "inline"}
        )
        from sklearn.datasets import load_digits

        pixels = load_digits().images[:20, None].astype(np.float32)
        assert fedloom.run(experiment, keep=False).predict(pixels).shape == (20,)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": 3}, "model: found a int, expected a torch.nn.Module"),
    "a factory of something else": ({"model": lambda: 3}, "found a int, expected a torch.nn.Module"),
    "a model that does not fit": ({"model": lambda: nn.Linear(4, 2)}, "called with float32 (2, 3): RuntimeError"),
    "too few outputs": ({"data": (X, np.arange(60) % 3)}, "one number for each class, and the labels go up to 2"),
    "no data": ({"data": None}, "data: required, but missing"),
    "a single array": ({"data": X}, "data: found a ndarray; expected (x, y)"),
    "words as inputs": ({"data": (np.array(["a", "b"]), Y[:2])}, "dtype <U1, expected numbers"),
    "other lengths": ({"data": (X, Y[:50])}, "expected as many inputs as targets, found [60, 50]"),
    "no examples": ({"data": (X[:0], Y[:0])}, "no examples"),
    "an empty list": ({"data": []}, "found an empty list"),
    "no label": ({"data": frame()}, "which column is the target? Its columns are a, b, c, kind"),
    "another label": ({"data": frame(), "label": "no"}, "expected a column 'no'"),
    "a column of words": ({"data": frame().assign(w="x"), "label": "kind"}, "pandas.get_dummies"),
    "a missing value": (
        {"data": frame().assign(a=np.where(Y, np.nan, 1.0)), "label": "kind"},
        f"column 'a' has {int(Y.sum())} missing or infinite values",
    ),
    "a class as loss": ({"loss": nn.CrossEntropyLoss}, "expected a function or an object: CrossEntropyLoss()"),
    "a loss without gradient": ({"loss": lambda o, t: torch.tensor(1.0)}, "<lambda>: the loss does not depend on"),
    "a loss per example": ({"loss": nn.CrossEntropyLoss(reduction="none")}, "loss.mean()"),
    "an optimiser": (
        {"optimizer": torch.optim.SGD(made_net().parameters(), lr=1)},
        "lambda parameters: torch.optim.SGD(",
    ),
    "an optimiser of nothing": ({"optimizer": lambda p: None}, "optimizer: found a NoneType"),
    "a metric that is none": ({"metrics": ["accuracy"]}, "metrics: "),
    "a metric of many numbers": ({"metrics": lambda o, t: o}, "metric 'metric' is a Tensor of shape"),
    "an unknown argument": ({"round": 3}, "unknown argument 'round'; did you mean 'rounds'?"),
    "no clients": ({"clients": None}, "clients: required, but missing"),
    "another task": ({"task": "clustering"}, "task: expected one of classification, binary"),
    "a rate beside an optimiser": (
        {"optimizer": torch.optim.Adam, "training": {"learning_rate": 0.1}},
        "training.learning_rate: without effect",
    ),
    "an unknown setting": ({"training": {"learnign_rate": 0.1}}, "workload.training.learnign_rate: unknown setting"),
    "a training that is no table": ({"training": [0.1]}, "training: expected a dict of settings"),
    "settings that are no table": ({"settings": "round"}, "settings: expected a dict of settings"),
    "an abbreviation": ({"training": {"lr": 0.1}}, "did you mean 'workload.training.learning_rate'?"),
    "a setting of training": ({"epochs": 3}, "it is a setting of training: training={'epochs': 3}"),
    "a sink that is none": ({"sinks": print}, "sinks: expected a list of objects with write(event) and close()"),
    "a list of sinks that are none": ({"sinks": [print]}, "sinks: expected a list of objects"),
    "a metric that returns nothing": ({"metrics": lambda o, t: None}, "metrics: 'metric' returned None (NoneType)"),
    "an input that is NaN": (
        {"data": (X * np.where(np.arange(60)[:, None] == 7, np.nan, 1), Y)},
        "in 1 of 60 examples, first in example 7",
    ),
    "a target that is infinite": ({"data": (X, np.where(Y, np.inf, 1.0))}, "entry 1 has missing or infinite values"),
    "a transform to text": ({"transform": str}, "transform: returned "),
    "a metric of the best that is not known": ({"best": "acuracy"}, "best.goal: required for the metric 'acuracy'"),
    "images changed that are none": ({"augment": {"flip": True}}, "workload.augment: changes images"),
    "a transform that raises": ({"transform": lambda x: x.nothing}, "nothing"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_said_with_the_programs_line_before_anything_starts(given: Any, said: str, tmp_path: Path) -> None:
    arguments = {"model": made_net(), "data": table(), **QUICK, "keep": True, **given}
    with pytest.raises((PluginInvalid, ConfigError)) as caught:
        fedloom.run(**arguments)
    assert said in str(caught.value) and ", line " in str(caught.value).partition(": ")[0]
    assert not list(tmp_path.rglob("experiment.toml"))


def test_an_experiment_is_typed() -> None:
    """mypy checks the lines; each ignore is an error where it is not needed."""
    made = fedloom.Experiment(
        rounds=2, clients=3, strategy={"name": "fedprox", "mu": 0.5}, workload="image_classification"
    )
    assert made == fedloom.Experiment.parse(
        {"rounds": 2, "clients": 3, "strategy": {"name": "fedprox", "mu": 0.5}, "workload": "image_classification"}
    )
    with pytest.raises(ConfigError, match=r"rouns: unknown setting .* did you mean 'rounds'"):
        fedloom.Experiment(rouns=2, strategy="fedavg", workload="image_classification")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="clients"):
        fedloom.Experiment(rounds=1, clients="many", strategy="fedavg", workload="meat")  # type: ignore[arg-type]


STEP = """
from dataclasses import replace
from fedloom.core.config import PluginSettings
from fedloom.strategies.fedavg.strategy import FedAvg

class Config(PluginSettings):
    share: float = SHARE

class Part(FedAvg):
    def finish(self, state, total, context):
        mean = super().finish(state, total, context).model
        return replace(state, model={name: old + SHARE * (mean[name] - old) for name, old in state.model.items()})

def build_strategy(config, experiment):
    return Part()
"""


@pytest.mark.parametrize("way", ["model", "Experiment"])
def test_an_edited_plug_in_is_used_by_the_next_call(way: str, tmp_path: Path) -> None:
    """Without a share of the clients' change the model stays as it was; half of it, in the same process, moves it."""
    file = tmp_path / "part.py"
    net = made_net()

    def run() -> RunResult:
        if way == "model":
            return fedloom.run(model=net, data=table(), strategy=str(file), **QUICK)
        experiment = fedloom.Experiment(
            rounds=1, clients=2, strategy=str(file), workload="fedloom.testing.linear", runtime={"name": "inline"}
        )
        return fedloom.run(experiment, keep=False)

    file.write_text(STEP.replace("SHARE", "0.0"), encoding="utf-8")
    still = [run().summary.model_sha256 for _ in range(2)]
    file.write_text(STEP.replace("SHARE", "0.5"), encoding="utf-8")
    assert still[0] == still[1] != run().summary.model_sha256


def test_a_class_of_an_interactive_session_has_no_source() -> None:
    """What a notebook's cell defines belongs to a module without a file."""
    made: dict[str, Any] = {"__name__": "__main__", "nn": nn}
    exec(
        "class Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.l = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n        return self.l(x)\n",
        made,
    )
    assert fedloom.run(model=made["Own"], data=table(), **QUICK).metrics
