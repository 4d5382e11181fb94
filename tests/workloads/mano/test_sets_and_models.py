"""Sets of the user's own, styles, classifiers of the user's own, and how models are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support_mano import build, estimated, experiment, scripted
from torch import nn

from fedloom import api
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import MODEL, ClientReport, Record
from fedloom.strategies.mano.monitor.config import Config
from fedloom.strategies.mano.monitor.monitor import LabelFreeAccuracy
from fedloom.strategies.mano.monitor.watch import logit_sums
from fedloom.strategies.mano.workload.corruptions.suite import CORRUPTIONS, corrupted
from fedloom.strategies.mano.workload.inference import run_model
from fedloom.strategies.mano.workload.sets import pixels_of
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.settings import FASHION_MNIST, Available

OWN_MODEL = """
from torch import nn

def small(shape, num_labels):
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 12), nn.ReLU(), nn.Linear(12, num_labels))

def wrong(shape, num_labels):
    return nn.Flatten()

def nothing(shape, num_labels):
    return 3
"""


def initial(workload: Any) -> dict[str, Record]:
    record = workload.init(np.random.default_rng(2))
    return {MODEL: Record({MODEL: {name: array.copy() for name, array in record.groups[MODEL].items()}})}


def cifar_c(folder: Path, severities: int = 5) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir()
    labels = rng.integers(0, 10, 12)
    np.save(folder / "labels.npy", np.tile(labels, severities))
    for name in ("gaussian_noise", "fog"):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (12 * severities, 8, 8, 1), dtype=np.uint8))


def test_sets_in_the_layout_of_cifar_c(tmp_path: Path) -> None:
    cifar_c(tmp_path / "Digits-C")
    workload = build(experiment({"sets": [{"layout": "cifar-c", "folder": str(tmp_path / "Digits-C")}]}))
    inputs = initial(workload)
    lines = [line for line in estimated(workload, inputs, parts=2) if line["group"] == "Digits-C"]
    assert {(line["family"], line["name"]) for line in lines} == {("gaussian", "gaussian_noise"), ("fog", "fog")}
    assert sorted(line["severity"] for line in lines) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    # severity 4 of fog by hand: its piece of the file, normalised like the training data
    images = np.load(tmp_path / "Digits-C" / "fog.npy")[36:48, :, :, 0][:, None] / np.float32(255)
    labels = np.load(tmp_path / "Digits-C" / "labels.npy")[:12]
    data = load_images(workload.config.data)
    mean, std = data.moments
    workload.trainer.load(inputs)
    outputs = run_model(workload.network, torch.from_numpy(((images - mean) / std).astype(np.float32)))
    fog = next(line for line in lines if line["name"] == "fog" and line["severity"] == 4)
    assert fog["samples"] == 12 and fog["accuracy"] == pytest.approx((outputs.predictions == labels).mean())


def test_labels_may_be_of_one_severity_and_odd_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "C"
    cifar_c(folder)
    np.save(folder / "labels.npy", np.load(folder / "labels.npy")[:12])
    settings = {"sets": [{"layout": "cifar-c", "folder": str(folder)}]}
    assert len(build(experiment(settings))._sets) == 31
    np.save(folder / "labels.npy", np.zeros(7, np.int64))
    with pytest.raises(DataMissing, match=r"do not match 7 labels"):
        build(experiment(settings))
    (folder / "labels.npy").unlink()
    with pytest.raises(DataMissing, match=r"expected labels\.npy"):
        build(experiment(settings))
    with pytest.raises(DataMissing, match="nothing at"):
        build(experiment({"sets": [{"layout": "cifar-c", "folder": str(tmp_path / "none")}]}))


def test_sets_that_are_folders_of_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name in ("rainy", "snowy"):
        for label in ("0", "7"):
            place = tmp_path / "own" / name / label
            place.mkdir(parents=True)
            for index in range(3):
                Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(place / f"{index}.png")
    settings = {"sets": [{"layout": "folders", "folder": str(tmp_path / "own")}]}
    workload = build(experiment(settings))
    lines = [line for line in estimated(workload, initial(workload), parts=1) if line["group"] == "own"]
    assert [(line["name"], line["samples"]) for line in lines] == [("rainy", 6), ("snowy", 6)]
    (tmp_path / "own" / "snowy" / "eleven").mkdir()
    with pytest.raises(DataMissing, match="not a class of the training data"):
        build(experiment(settings))


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    cifar_c(tmp_path / "C")
    np.save(tmp_path / "C" / "fog.npy", np.zeros((60, 9, 9, 1), np.uint8))
    workload = build(experiment({"sets": [{"layout": "cifar-c", "folder": str(tmp_path / "C")}]}))
    with pytest.raises(DataMissing, match=r"images of shape \(9, 9, 1\)"):
        estimated(workload, initial(workload), parts=1)


def test_styles_keep_part_of_each_class_from_training() -> None:
    made = experiment({"styles": {"clusters": 3, "unseen": 1}, "train_examples": None})
    workload = build(made)
    whole = build(experiment({"train_examples": None}))
    trained, before = (len(each._rows.train) + len(each._rows.validation) for each in (workload, whole))
    assert 0.5 * before < trained < 0.95 * before
    again = build(made)
    assert np.array_equal(again._rows.train, workload._rows.train)
    assert np.array_equal(again._rows.test_styles, workload._rows.test_styles)
    names = [(each.group, each.family) for each in workload._sets]
    assert [family for group, family in names if group == "style"] == ["seen", "seen", "unseen"]
    assert sum(group == "subpopulation" for group, _ in names) == 20
    lines = estimated(workload, initial(workload), parts=1)
    assert sum(line["samples"] for line in lines if line["group"] == "style") <= 3 * 60
    sizes = np.bincount(workload._rows.test_styles)
    assert sizes[2] == min(sizes)


def test_a_classifier_of_the_users_own_from_a_file_and_by_import(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN_MODEL, encoding="utf-8")
    made = experiment({"classifier": f"{file}:small", "second": False})
    result = api.run(made, keep=False)
    assert {name: array.shape for name, array in result.arrays.items()}["3.weight"] == (10, 12)
    scores = result.history[-1].info["mano"]["sets"][0]["scores"]
    assert "agree_score" not in scores and np.isfinite(list(scores.values())).all()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(initial(build(experiment({"classifier": "mine:small"})))[MODEL].groups[MODEL]) == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("small", "MODULE:FUNCTION"),
        ("no_such_module:small", "cannot be imported"),
        ("./missing.py:small", "not found"),
        ("./mine.py:absent", "no function 'absent'"),
        ("./mine.py:nothing", "made a int"),
        ("./mine.py:wrong", r"turns images \(2, 1, 8, 8\) into \(2, 64\)"),
    ],
)
def test_what_is_no_classifier_is_refused(tmp_path: Path, spec: str, message: str) -> None:
    Path("mine.py").write_text(OWN_MODEL, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        build(experiment({"classifier": spec}))


def test_a_frozen_model_is_scored_as_its_file_has_it(tmp_path: Path) -> None:
    inputs, lines = scripted(experiment())
    file = tmp_path / "model.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in inputs[MODEL].groups[MODEL].items()}, file)
    result = api.run(experiment({"weights": str(file), "frozen": True, "second": False}, rounds=1), keep=False)
    for name, array in result.arrays.items():
        assert np.array_equal(array, inputs[MODEL].groups[MODEL][name])
    clean = next(line for line in result.history[-1].info["mano"]["sets"] if line["group"] == "clean")
    assert clean["scores"]["softmax"] == next(line for line in lines if line["group"] == "clean")["scores"]["softmax"]


def test_weights_that_are_not_there_or_do_not_fit(tmp_path: Path) -> None:
    settings = {"frozen": True, "second": False}
    with pytest.raises(DataMissing, match="not found"):
        initial(build(experiment({"weights": "none.safetensors", **settings})))
    (tmp_path / "text").write_text("hello", encoding="utf-8")
    with pytest.raises(DataMissing, match="not a safetensors file"):
        initial(build(experiment({"weights": str(tmp_path / "text"), **settings})))
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="does not fit"):
        initial(build(experiment({"weights": str(tmp_path / "other.safetensors"), **settings})))


def test_scoring_with_batch_statistics_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    images = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "num_batches" not in name}
    adapted, plain = run_model(model, images, batch_statistics=True), run_model(model, images)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert not model.training and plain.features.shape == (300, 144)
    with torch.no_grad():
        assert np.allclose(plain.logits, model(images).numpy(), atol=1e-5)
        assert np.allclose(adapted.logits[:128], model.train()(images[:128]).numpy(), atol=1e-5)


def test_the_released_scoring_in_training_mode_keeps_the_deployed_accuracy() -> None:
    inputs, lines = scripted(experiment())
    released = estimated(build(experiment({"batch_statistics": True})), inputs, parts=1)
    assert [line["accuracy"] for line in released] == [line["accuracy"] for line in lines]
    assert all(line["accuracy"] == line["scored_accuracy"] for line in lines)
    assert any(line["accuracy"] != line["scored_accuracy"] for line in released)
    assert [line["scores"]["softmax"] for line in released] != [line["scores"]["softmax"] for line in lines]


def test_a_corrupted_piece_is_harder_and_the_same_every_time() -> None:
    inputs, _ = scripted(experiment())
    clean, spoilt = build(experiment()), build(experiment({"spoilt_pieces": True}))
    models = {MODEL: inputs[MODEL]}
    first, labels = spoilt.logits(models, spoilt.held_out(4, 20))
    assert np.array_equal(first, spoilt.logits(models, spoilt.held_out(4, 20))[0])
    assert np.array_equal(labels, clean.logits(models, clean.held_out(4, 20))[1])
    assert not np.array_equal(first, clean.logits(models, clean.held_out(4, 20))[0])
    assert np.array_equal(spoilt.logits(models, spoilt.shard(0))[0], clean.logits(models, clean.shard(0))[0])


def test_available_is_fashion_mnist_or_the_digits() -> None:
    want = "Fashion-MNIST" if Path(FASHION_MNIST).is_dir() else "scikit-learn digits"
    assert load_images(Available()).info["name"].startswith(want)


def test_without_fashion_mnist_the_digits_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedloom.workloads._data.image_files.FASHION_MNIST", "/nowhere")
    assert load_images(Available()).shape == (1, 8, 8)


def test_the_monitors_alarm_sees_a_shift_in_its_round_and_stays_silent_without_one() -> None:
    """Twenty rounds of fresh draws from the test images, then one client of six gets the worst of a corruption."""
    made = experiment({"train_examples": 1200, "second": False}, rounds=6)
    inputs, _ = scripted(made)
    workload, rng = build(made), np.random.default_rng(4)
    workload.trainer.load(inputs)
    pixels, _ = pixels_of(workload._images, np.arange(359))
    raised = dict[str, bool]()
    for name in CORRUPTIONS:
        watcher, earlier = LabelFreeAccuracy(Config(anchors=0, clients=6)), list[Any]()
        for number in range(21 if not raised else 3):
            pieces = [pixels[rng.integers(0, 359, 100)] for _ in range(6)]
            last = number == (20 if not raised else 2)
            if last:
                pieces[4] = corrupted(pieces[4], name, 5, bank="harsh", seed=1, rows=np.arange(100))
            logits = [run_model(workload.network, workload._normalised(piece)).logits for piece in pieces]
            reports = [
                ClientReport(client=client, num_examples=100, seconds=0.0, info=logit_sums(q))
                for client, q in enumerate(logits)
            ]
            reported = watcher.read(reports, earlier)
            earlier.append(reported.info)
            if not last:
                assert not reported.warnings
        assert set(reported.warnings) <= {"client 4 has drifted"}
        raised[name] = bool(reported.warnings)
    assert sum(raised.values()) >= 15  # of 20: a model that is wrong and sure of it cannot be seen
