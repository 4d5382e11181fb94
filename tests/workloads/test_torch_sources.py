"""The workload `torch` on images and standardised inputs, several labels, networks by name, all training settings."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from own_models import QUICK, Net, X, Y
from PIL import Image
from support_rounds import build
from torch import nn

import fedloom
from fedloom.core.errors import ConfigError, PackageMissing, PluginInvalid
from fedloom.core.records import Array, Info
from fedloom.core.run_files import read_workload


def experiment(workload: dict[str, Any], **settings: Any) -> fedloom.Experiment:
    base: dict[str, Any] = {"rounds": 2, "clients": 3, "strategy": "fedavg", "runtime": {"name": "inline"}, **settings}
    return fedloom.Experiment(**base, workload={"name": "torch", **workload})


def sha(workload: dict[str, Any]) -> str | None:
    return fedloom.run(experiment(workload), keep=False).summary.model_sha256


def own(data: Any, **more: Any) -> str | None:
    return fedloom.run(**{"model": linear(3, 2), "data": data, **QUICK, **more}).summary.model_sha256


def linear(inputs: int, outputs: int) -> Any:
    """Return what makes the model `logistic`, with its names of arrays."""
    return lambda: nn.Sequential(nn.Linear(inputs, outputs))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestStandardising:
    SCALED = (X * [1.0, 10.0, 100.0] + [5.0, 0.0, -3.0]).astype(np.float32)

    @pytest.fixture
    def table(self, here: Path) -> None:
        named = {name: self.SCALED[:, place] for place, name in enumerate("abc")}
        pd.DataFrame({**named, "label": Y}).to_csv("table.csv", index=False)
        np.savez("arrays.npz", x=self.SCALED, y=Y)

    def test_columns_have_mean_0_and_deviation_1(self, table: None) -> None:
        wide = self.SCALED.astype(np.float64)
        x = ((wide - wide.mean(0)) / wide.std(0)).astype(np.float32)
        wanted = own((x, Y))
        data = {"source": "npz", "file": "arrays.npz", "standardise": True}
        assert sha({"model": "logistic", "data": data}) == wanted
        given = {"mean": wide.mean(0).tolist(), "std": wide.std(0).tolist()}
        assert sha({"model": "logistic", "data": {**data, **given}}) == wanted
        assert sha({"model": "logistic", "data": {**data, "standardise": False}}) != wanted

    def test_predictions_take_inputs_as_they_are_in_the_file(self, table: None) -> None:
        data = {"source": "csv", "file": "table.csv", "standardise": True}
        result = fedloom.run(experiment({"model": "logistic", "data": data}), out="run")
        info = read_workload(Path("run"))
        assert info is not None and info.data["mean"] == pytest.approx(self.SCALED.mean(0), rel=1e-4)
        x = (self.SCALED - info.data["mean"]) / info.data["std"]
        logits = x @ result.arrays["0.weight"].T + result.arrays["0.bias"]
        assert (result.predict(self.SCALED) == logits.argmax(1)).all()

    def test_a_test_files_rows_are_no_part_of_the_mean(self, table: None) -> None:
        frame = pd.read_csv("table.csv")
        frame.assign(a=1e6).to_csv("test.csv", index=False)
        data = {"source": "csv", "file": "table.csv", "test_file": "test.csv", "standardise": True}
        data_of = build(experiment({"model": "logistic", "data": data})).data
        assert abs(float(data_of.train.batch(torch.arange(60))[0][0].mean())) < 1e-5
        assert float(data_of.test.batch(torch.arange(1))[0][0][0, 0]) > 1e5

    def test_a_constant_column_is_0(self, here: Path) -> None:
        np.savez("arrays.npz", x=np.stack([X[:, 0], np.full(60, 7.0)], 1), y=Y)
        data = {"source": "npz", "file": "arrays.npz", "standardise": True}
        (x,), _ = build(experiment({"model": "logistic", "data": data})).data.train.batch(torch.arange(40))
        assert (x[:, 1] == 0).all() and torch.isfinite(x).all()

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"mean": [0.0, 1.0, 2.0]}, "expected both, with one value per column each"),
            ({"standardise": False, "mean": [0.0], "std": [1.0]}, r"without effect unless .*standardise = true"),
            ({"mean": [0.0], "std": [1.0]}, r"expected inputs of shape \(n, 1, …\), .* found \(60, 3\)"),
            ({"mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]}, r"std.*greater than 0"),
        ],
    )
    def test_wrong_settings_are_refused(self, table: None, changed: dict[str, Any], said: str) -> None:
        data = {"source": "npz", "file": "arrays.npz", "standardise": True, **changed}
        with pytest.raises(ConfigError, match=said):
            build(experiment({"model": "logistic", "data": data}))


PICTURES: Info = {"source": "images", "folder": "pictures", "size": 4, "test_fraction": 0.25}


class TestImages:
    @pytest.fixture
    def pixels(self, here: Path) -> Array:
        """Twelve images of 4 x 4 pixels of two classes in folders; returns them by class, (2, 6, 4, 4, 3)."""
        made = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 4, 3), dtype=np.uint8)
        for place, name in enumerate(("cats", "dogs")):
            folder = here / "pictures" / name
            folder.mkdir(parents=True)
            for number, image in enumerate(made[place]):
                Image.fromarray(image).save(folder / f"{number}.png")
        return made

    def test_a_folder_of_images_is_normalised_by_channel(self, pixels: Array) -> None:
        (here := Path("net.py")).write_text(
            "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))\n",
            encoding="utf-8",
        )
        made = build(experiment({"model": f"./{here}:net", "data": PICTURES}))
        (train,), labels = made.data.train.batch(torch.arange(len(made.data.train)))
        assert made.describe().label_names == ("cats", "dogs") and set(labels.tolist()) == {0, 1}
        mean, std = (np.array(made.describe().data[name]) for name in ("mean", "std"))
        raw = train.numpy() * std.reshape(1, -1, 1, 1) + mean.reshape(1, -1, 1, 1)
        known = {image.tobytes() for image in pixels.reshape(-1, 4, 4, 3)}
        back = np.rint(raw * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        assert all(np.ascontiguousarray(image).tobytes() in known for image in back)
        assert np.allclose(train.numpy().mean((0, 2, 3)), 0, atol=1e-5) and np.allclose(
            train.numpy().std((0, 2, 3)), 1, atol=1e-5
        )

    def test_they_are_changed_at_random_in_training(self, pixels: Array) -> None:
        Path("net.py").write_text(
            "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))\n",
            encoding="utf-8",
        )
        settings = {"model": "./net.py:net", "data": PICTURES}
        plain, flipped = sha(settings), sha({**settings, "augment": {"flip": True, "crop": 1, "erase": 0.5}})
        assert plain != flipped == sha({**settings, "augment": {"flip": True, "crop": 1, "erase": 0.5}})
        still = sha({**settings, "augment": {"flip": False}})
        assert still == plain

    def test_a_program_says_it_too(self, pixels: Array) -> None:
        x, y = pixels.reshape(-1, 4, 4, 3).transpose(0, 3, 1, 2).astype(np.float32), np.repeat([0, 1], 6)
        given = {**QUICK, "model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), "data": (x / 255, y)}
        plain = fedloom.run(**given).summary.model_sha256
        assert plain != fedloom.run(**given, augment={"crop": 1}).summary.model_sha256

    def test_tables_are_not(self) -> None:
        with pytest.raises(ConfigError, match=r"workload\.augment: changes images, .* found \(n, 3\); remove it"):
            fedloom.run(model=Net, data=(X, Y), **QUICK, augment={"flip": True})

    def test_a_network_of_transformers_has_its_weights(self, pixels: Array) -> None:
        from transformers import ViTConfig, ViTForImageClassification

        small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = ViTForImageClassification(ViTConfig(image_size=4, patch_size=2, num_labels=2, **small))
            network.save_pretrained("vit")
        made = build(experiment({"model": "transformers:./vit", "data": PICTURES}))
        name = next(name for name in network.state_dict() if "layer" in name and name.endswith("weight"))
        names = {key.removeprefix("network."): value for key, value in made.network.state_dict().items()}
        assert name in names and torch.equal(names[name], network.state_dict()[name])
        assert fedloom.run(experiment({"model": "transformers:./vit", "data": PICTURES}), keep=False).metrics

    def test_a_network_of_timm_fits_channels_and_classes(self, pixels: Array, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def create_model(name: str, *, pretrained: bool, in_chans: int, num_classes: int) -> nn.Module:
            asked.append((name, pretrained, in_chans, num_classes))
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, num_classes))

        timm = types.ModuleType("timm")
        vars(timm).update(create_model=create_model, list_models=lambda pattern="*": ["resnet18", "resnet34"])
        monkeypatch.setitem(sys.modules, "timm", timm)
        assert fedloom.run(experiment({"model": "timm:resnet18", "data": PICTURES}), keep=False).metrics
        assert set(asked) == {("resnet18", False, 3, 2)}
        with pytest.raises(ConfigError, match=r"timm has no network 'resnet19'; expected resnet18, resnet34"):
            build(experiment({"model": "timm:resnet19", "data": PICTURES}))

    def test_without_the_package_it_says_how_to_get_it(self, pixels: Array, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(PackageMissing, match="timm"):
            build(experiment({"model": "timm:resnet18", "data": PICTURES}))

    def test_a_network_for_images_refuses_a_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        np.savez("arrays.npz", x=X, y=Y)
        with pytest.raises(ConfigError, match=r"needs images \(n, channels, height, width\), found .* \(n, 3\)"):
            build(experiment({"model": "timm:resnet18", "data": {"source": "npz", "file": "arrays.npz"}}))


class TestSeveralLabels:
    @pytest.fixture
    def table(self, here: Path) -> None:
        named = {name: X[:, place] for place, name in enumerate("abc")}
        frame = pd.DataFrame({**named, "ill": Y, "old": 1 - Y, "height": X[:, 0] * 2, "weight": X[:, 1] - 1})
        frame.to_csv("table.csv", index=False)

    @pytest.mark.parametrize(
        ("labels", "targets", "metrics"),
        [
            (["ill", "old"], np.stack([Y, 1 - Y], 1).astype(np.float32), {"loss", "accuracy"}),
            (["height", "weight"], np.stack([X[:, 0] * 2, X[:, 1] - 1], 1).astype(np.float32), {"loss", "mae"}),
        ],
        ids=["labels", "numbers"],
    )
    def test_columns_beside_each_other(self, table: None, labels: list[str], targets: Array, metrics: set[str]) -> None:
        data = {"source": "csv", "file": "table.csv", "label": labels, "features": ["a", "b", "c"]}
        result = fedloom.run(experiment({"model": "logistic", "data": data}), keep=False)
        assert result.metrics.keys() == metrics and result.predict(X).shape == (60, 2)
        frame = pd.read_csv("table.csv")
        x = frame[["a", "b", "c"]].to_numpy(np.float32)
        wanted = frame[labels].to_numpy(np.float32)
        assert np.allclose(wanted, targets, atol=1e-5)
        assert own((x, wanted)) == result.summary.model_sha256
        by_frame = fedloom.run(model=linear(3, 2), data=frame, label=labels, columns=["a", "b", "c"], **QUICK)
        assert by_frame.summary.model_sha256 == result.summary.model_sha256

    def test_a_column_of_words_among_them_is_named(self, table: None) -> None:
        frame = pd.read_csv("table.csv").assign(old="yes")
        with pytest.raises(PluginInvalid, match="column 'old' has dtype"):
            fedloom.run(model=linear(3, 2), data=frame, label=["ill", "old"], columns=["a", "b", "c"], **QUICK)


def test_all_settings_of_training_together_are_their_formulas(here: Path) -> None:
    """One client, whole batches, softmax regression: NumPy does the same steps."""
    rounds, steps, rate, limit, smoothing = 3, 4, 0.5, 0.3, 0.2
    training = {
        "learning_rate": rate,
        "batch_size": 60,
        "steps": steps,
        "clip_norm": limit,
        "class_weights": [1.0, 3.0],
        "label_smoothing": smoothing,
        "round_schedule": {"shape": "linear", "final": 0.5, "warmup": 1},
        "step_schedule": {"shape": "cosine", "warmup": 1},
    }
    np.savez("arrays.npz", x=X, y=Y, x_test=X, y_test=Y)
    workload = {"model": "logistic", "data": {"source": "npz", "file": "arrays.npz"}, "training": training}
    made = experiment(workload, rounds=rounds, clients=1)
    result = fedloom.run(made, keep=False)

    first = fedloom.run(made.override(["rounds=3", "workload.training.learning_rate=1e-12"]), keep=False).arrays
    w, b = (first[name].astype(np.float64) for name in ("0.weight", "0.bias"))
    for number in range(rounds):
        share = 0.5 if number == 0 else 1.0 - 0.5 * (number - 1) / (rounds - 1)
        for step in range(steps):
            logits = X @ w.T + b
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            weights = np.array([1.0, 3.0])
            hard, soft = (1 - smoothing) * np.eye(2)[Y] * weights, smoothing / 2 * weights
            wanted = hard + soft  # weight of each class's log-probability, by example
            gradient = (p * wanted.sum(1, keepdims=True) - wanted) / weights[Y].sum()
            gw, gb = gradient.T @ X, gradient.sum(0)
            norm = np.sqrt((gw**2).sum() + (gb**2).sum())
            scale = min(1.0, limit / (norm + 1e-6))
            over = (step - 1) / (steps - 1)
            factor = 0.5 if step == 0 else 0.5 * (1 + np.cos(np.pi * over))
            w, b = w - rate * share * factor * scale * gw, b - rate * share * factor * scale * gb
    assert np.allclose(result.arrays["0.weight"], w, atol=1e-5) and np.allclose(result.arrays["0.bias"], b, atol=1e-5)
