"""Image sets in the files they are published in: CIFAR-10, STL-10, SVHN."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.extras import needed_by
from fedloom.core.records import Array
from fedloom.workloads._data.raw import RawData, existing
from fedloom.workloads._data.settings import Cifar10, Stl10, Svhn

NamedFiles = list[tuple[str, Path]]
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_CIFAR_PARTS = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_STL_PARTS = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
_SVHN_PARTS = ("train_32x32.mat", "test_32x32.mat")
_RECORD = 1 + 3 * 32 * 32
_BYTES = "8 bits: value / 255"
_HARMLESS = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""What the pickles of CIFAR-10's Python version call; nothing else is loaded."""


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of arrays; refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> object:
        """Return one of the few functions that make arrays."""
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)


def cifar10_files(settings: Cifar10) -> NamedFiles:
    """Return the five training parts and the test part: the binary version's, or the Python version's."""
    remedy = f"Set workload.data.folder to the unpacked folder with {_CIFAR_PARTS[0]} (or .bin) to {_CIFAR_PARTS[-1]}"
    folder = existing(settings.folder, "workload.data: the folder of CIFAR-10 is missing", remedy)
    suffix = ".bin" if (folder / f"{_CIFAR_PARTS[0]}.bin").is_file() else ""
    return _present(folder, tuple(f"{part}{suffix}" for part in _CIFAR_PARTS), remedy)


def read_cifar10(settings: Cifar10, files: NamedFiles) -> RawData[Array]:
    """Return 32 x 32 colour images."""
    parts = [(_cifar_binary if path.suffix == ".bin" else _cifar_pickle)(path) for _, path in files]
    x_train, y_train = (np.concatenate(each) for each in zip(*parts[:-1], strict=True))
    x_test, y_test = parts[-1]
    return _raw(settings.folder, "CIFAR-10", _CIFAR, (x_train, y_train, x_test, y_test))


def stl10_files(settings: Stl10) -> NamedFiles:
    """Return the images and labels of both splits of the binary version; unlabelled images are not read."""
    remedy = f"Set workload.data.folder to the unpacked folder with {', '.join(_STL_PARTS)}"
    folder = existing(settings.folder, "workload.data: the folder of STL-10 is missing", remedy)
    return _present(folder, _STL_PARTS, remedy)


def read_stl10(settings: Stl10, files: NamedFiles) -> RawData[Array]:
    """Return 96 x 96 colour images; the files store them column by column, and classes from 1."""
    splits = []
    for (_, images), (_, labels) in (files[:2], files[2:]):
        raw, y = np.fromfile(images, np.uint8), np.fromfile(labels, np.uint8).astype(np.int64) - 1
        size = 3 * 96 * 96
        if raw.size != size * len(y) or not len(y):
            raise DataMissing(
                f"{images}: expected {size} bytes for each of {len(y)} labels, found {raw.size}: truncated?"
            )
        splits += [raw.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2), _checked(y, labels)]
    return _raw(settings.folder, "STL-10", _STL, (splits[0], splits[1], splits[2], splits[3]))


def svhn_files(settings: Svhn) -> NamedFiles:
    """Return the cropped digits of both splits; the extra ones are not read."""
    remedy = f"Set workload.data.folder to a folder with {' and '.join(_SVHN_PARTS)}"
    folder = existing(settings.folder, "workload.data: the folder of SVHN is missing", remedy)
    return _present(folder, _SVHN_PARTS, remedy)


def read_svhn(settings: Svhn, files: NamedFiles) -> RawData[Array]:
    """Return 32 x 32 colour images; the files' class 10 is the digit 0."""
    with needed_by("workload.data (source 'svhn')"):
        from scipy.io import loadmat
    splits: list[Array] = []
    for _, path in files:
        try:
            content = loadmat(io.BytesIO(path.read_bytes()))
            x, y = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1).astype(np.int64)
        except Exception as exc:
            raise DataMissing(f"{path}: cannot be read as a MATLAB file with X and y: {exc}. Fetch it again") from exc
        if x.ndim != 4 or x.shape[2] != 3 or x.shape[3] != len(y) or x.dtype != np.uint8:
            raise DataMissing(f"{path}: X is {x.dtype} {x.shape}, expected uint8 (h, w, 3, n) with n = {len(y)} labels")
        splits += [x.transpose(3, 2, 0, 1), _checked(y % 10, path)]
    return _raw(settings.folder, "SVHN", tuple(map(str, range(10))), (splits[0], splits[1], splits[2], splits[3]))


def _present(folder: Path, names: tuple[str, ...], remedy: str) -> NamedFiles:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataMissing(f"workload.data: {str(folder)!r} has no {', '.join(missing)}. {remedy}")
    return [(name, folder / name) for name in names]


def _cifar_binary(path: Path) -> tuple[Array, Array]:
    raw = np.fromfile(path, np.uint8)
    if raw.size % _RECORD or not raw.size:
        raise DataMissing(f"{path}: expected records of {_RECORD} bytes, found {raw.size} bytes: truncated?")
    records = raw.reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), _checked(records[:, 0].astype(np.int64), path)


def _cifar_pickle(path: Path) -> tuple[Array, Array]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        x, y = np.asarray(content[b"data"]), np.asarray(content[b"labels"], np.int64)
    except Exception as exc:  # a pickle may raise anything
        raise DataMissing(f"{path}: cannot be read as a part of CIFAR-10's Python version: {exc}") from exc
    if x.dtype != np.uint8 or x.shape != (len(y), _RECORD - 1):
        raise DataMissing(f"{path}: data is {x.dtype} {x.shape}, expected uint8 ({len(y)}, {_RECORD - 1})")
    return x.reshape(-1, 3, 32, 32), _checked(y, path)


def _checked(labels: Array, path: Path) -> Array:
    if len(labels) and not (labels.min() >= 0 and labels.max() < 10):
        raise DataMissing(f"{path}: expected ten classes, found labels from {labels.min()} to {labels.max()} (from 0)")
    return labels


def _raw(folder: str, title: str, names: tuple[str, ...], arrays: tuple[Array, Array, Array, Array]) -> RawData[Array]:
    x_train, y_train, x_test, y_test = arrays
    return RawData(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        label_names=names,
        where=folder,
        title=title,
        kind="real",
        layout="chw",
        values={_BYTES: len(x_train) + len(x_test)},
    )
