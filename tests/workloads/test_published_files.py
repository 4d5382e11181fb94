"""CIFAR-10, STL-10, SVHN and folders of ImageNet: small files in the formats they are published in."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.images import ImageData, load_images
from fedloom.workloads._data.settings import Cifar10, Images, Stl10, Svhn

RNG = np.random.Generator(np.random.PCG64(1))
PIXELS = RNG.integers(0, 256, (12, 3, 32, 32)).astype(np.uint8)
LABELS = np.arange(12) % 10


def unnormalised(data: ImageData, x: Array) -> Array:
    mean, std = data.moments
    return np.asarray(np.rint((x * std + mean) * 255)).astype(np.uint8)


def cifar(folder: Path, *, binary: bool) -> Cifar10:
    """Five training parts of two images each, a test part of two."""
    for part in range(6):
        name, rows = f"data_batch_{part + 1}" if part < 5 else "test_batch", slice(2 * part, 2 * part + 2)
        x, y = PIXELS[rows].reshape(2, -1), LABELS[rows]
        if binary:
            np.concatenate([y[:, None].astype(np.uint8), x], axis=1).tofile(folder / f"{name}.bin")
        else:
            content = {b"data": x, b"labels": y.tolist(), b"batch_label": b"x", b"filenames": [b"a", b"b"]}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return Cifar10(folder=str(folder))


@pytest.mark.parametrize("binary", [True, False])
def test_cifar10(tmp_path: Path, binary: bool) -> None:
    data = load_images(cifar(tmp_path, binary=binary))
    assert np.array_equal(unnormalised(data, data.x_train), PIXELS[:10])
    assert np.array_equal(unnormalised(data, data.x_test), PIXELS[10:])
    assert data.y_train.tolist() == LABELS[:10].tolist() and data.info["label_names"][3] == "cat"
    assert data.shape == (3, 32, 32) and data.num_labels == 10 and data.info["name"] == "CIFAR-10"


def test_stl10_is_stored_column_by_column_with_classes_from_one(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (3, 3, 96, 96)).astype(np.uint8)  # (n, c, rows, columns)
    for split in ("train", "test"):
        images.transpose(0, 1, 3, 2).tofile(tmp_path / f"{split}_X.bin")
        np.array([1, 10, 4], np.uint8).tofile(tmp_path / f"{split}_y.bin")
    data = load_images(Stl10(folder=str(tmp_path)))
    assert np.array_equal(unnormalised(data, data.x_train), images) and data.y_test.tolist() == [0, 9, 3]
    assert [data.info["label_names"][label] for label in data.y_train] == ["airplane", "truck", "cat"]


def test_svhn_has_the_digit_zero_as_class_ten(tmp_path: Path) -> None:
    for split in ("train", "test"):
        content = {"X": PIXELS[:3].transpose(2, 3, 1, 0), "y": np.array([[10], [1], [9]], np.uint8)}
        savemat(tmp_path / f"{split}_32x32.mat", content)
    data = load_images(Svhn(folder=str(tmp_path)))
    assert np.array_equal(unnormalised(data, data.x_train), PIXELS[:3]) and data.y_train.tolist() == [0, 1, 9]


def test_folders_of_imagenet(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for name in ("n01440764", "n01443537"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(PIXELS[number].transpose(1, 2, 0)).save(
                    tmp_path / split / name / f"{name}_{number}.JPEG", "JPEG"
                )
    data = load_images(Images(folder=str(tmp_path), test_folder="val", size=16))
    assert data.x_train.shape == (6, 3, 16, 16) and len(data.y_test) == 2
    assert list(data.info["label_names"]) == ["n01440764", "n01443537"]


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("harm",)


def test_damaged_foreign_and_harmful_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataMissing, match="data_batch_1"):
        load_images(Cifar10(folder=str(tmp_path)))
    with pytest.raises(DataMissing, match="train_X"):
        load_images(Stl10(folder=str(tmp_path / "nowhere")))
    settings = cifar(tmp_path, binary=False)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Harmful(), b"labels": [1]}))
    with pytest.raises(DataMissing, match="mkdir"):
        load_images(settings)
    assert not (tmp_path / "harm").exists()
    (tmp_path / "data_batch_1.bin").write_bytes(b"1234")
    with pytest.raises(DataMissing, match=r"has no data_batch_2\.bin"):
        load_images(settings)
    cifar(tmp_path, binary=True)
    (tmp_path / "test_batch.bin").write_bytes(b"\x01" * 3000)
    with pytest.raises(DataMissing, match=r"test_batch.bin.*3073 bytes, found 3000"):
        load_images(settings)
    (tmp_path / "test_batch.bin").write_bytes(b"\x63" * 3073)
    with pytest.raises(DataMissing, match="ten classes, found labels from 99 to 99"):
        load_images(settings)
    for split in ("train", "test"):
        (tmp_path / f"{split}_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(DataMissing, match="cannot be read as a MATLAB file"):
        load_images(Svhn(folder=str(tmp_path)))
    np.zeros(100, np.uint8).tofile(tmp_path / "train_X.bin")
    for name in ("train_y.bin", "test_X.bin", "test_y.bin"):
        np.ones(2, np.uint8).tofile(tmp_path / name)
    with pytest.raises(DataMissing, match="27648 bytes for each of 2 labels, found 100"):
        load_images(Stl10(folder=str(tmp_path)))
