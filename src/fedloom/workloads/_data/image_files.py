"""Image sources that are files: scikit-learn's digits, IDX folders, NumPy archives, folders of pictures."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.class_folders import PICTURES, ClassPicture, class_folders
from fedloom.workloads._data.raw import RawData, existing, title_of
from fedloom.workloads._data.settings import FASHION_MNIST, Available, Digits, Idx, Images, Npz
from fedloom.workloads._data.values import scaled, stacked

NamedFiles = list[tuple[str, Path]]
_IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION_SHA256 = "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
"""Of Fashion-MNIST's training images, decompressed."""
_FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


def digits_files(settings: Digits) -> NamedFiles:
    """Return the table inside scikit-learn, found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    folder = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else Path()
    path = folder / "datasets" / "data" / "digits.csv.gz"
    if spec is None or not path.is_file():
        raise DataMissing("the digits ship inside scikit-learn, which is not installed here: pip install scikit-learn")
    return [(path.name, path)]


def read_digits(settings: Digits, files: NamedFiles) -> RawData[Array]:
    """Return grey values 0 to 16, as floats from 0 to 1; every fifth example (of a fixed shuffle) is held out."""
    with gzip.open(files[0][1], "rt", encoding="utf-8") as table:
        values = np.loadtxt(table, delimiter=",")
    images, labels = (values[:, :-1] / 16.0).reshape(-1, 8, 8).astype(np.float32), values[:, -1].astype(np.int64)
    return RawData(
        x_train=images,
        y_train=labels,
        label_names=tuple(map(str, range(10))),
        where=str(files[0][1]),
        title="scikit-learn digits (UCI Optical Recognition of Handwritten Digits, test part)",
        kind="real",
        licence="BSD-3-Clause (as shipped in scikit-learn)",
        values={"4 bits: value / 16": len(labels)},
    )


def available_files(settings: Available) -> NamedFiles:
    """Return Fashion-MNIST's files, or the digits' table."""
    return idx_files(Idx()) if Path(FASHION_MNIST).is_dir() else digits_files(Digits())


def read_available(settings: Available, files: NamedFiles) -> RawData[Array]:
    """Read Fashion-MNIST or the digits, whichever the files are."""
    return read_idx(Idx(), files) if len(files) == len(_IDX_NAMES) else read_digits(Digits(), files)


def idx_files(settings: Idx) -> NamedFiles:
    """Return the four files, preferring uncompressed ones."""
    remedy = (
        "Install Debian's package (apt-get install dataset-fashion-mnist), or set workload.data.folder to a folder "
        f"with {', '.join(_IDX_NAMES)} (each plain or .gz)"
    )
    folder = existing(settings.folder, "workload.data: the IDX folder is missing", remedy)
    found = []
    for name in _IDX_NAMES:
        path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
        if path is None:
            raise DataMissing(f"workload.data: {str(folder)!r} has no {name} (nor {name}.gz). {remedy}")
        found.append((path.name, path))
    return found


def read_idx(settings: Idx, files: NamedFiles) -> RawData[Array]:
    """Return images and labels of both splits."""
    x_train, y_train, x_test, y_test = (_idx(path) for _, path in files)
    (x_train, scaling), (x_test, _) = (
        scaled(x, settings.value_range, str(path)) for x, (_, path) in ((x_train, files[0]), (x_test, files[2]))
    )
    for images, labels, (name, path) in ((x_train, y_train, files[1]), (x_test, y_test, files[3])):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataMissing(
                f"{path}: {name} has shape {labels.shape}, its images {images.shape}: expected (n,), (n, h, w)"
            )
    fashion = hashlib.sha256(_idx_bytes(files[0][1])).hexdigest() == _FASHION_SHA256
    return RawData(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        label_names=_FASHION_NAMES if fashion else (),
        where=str(files[0][1].parent),
        title=settings.title or ("Fashion-MNIST" if fashion else title_of(settings, settings.folder)),
        kind=settings.kind,
        licence=settings.licence or ("MIT" if fashion else None),
        values={scaling: len(x_train) + len(x_test)},
    )


def _idx_bytes(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as exc:
        raise DataMissing(f"{path}: cannot be read: {exc}. Fetch the file again") from exc


def _idx(path: Path) -> Array:
    """Read an IDX file of unsigned bytes: two zero bytes, type 8, rank, big-endian sizes, data."""
    raw = _idx_bytes(path)
    rank = raw[3] if len(raw) > 3 else 0
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * rank:
        raise DataMissing(f"{path}: not an IDX file of unsigned bytes (starts with {raw[:4].hex() or 'nothing'})")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=rank, offset=4))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if data.size != int(np.prod(shape, dtype=np.int64)):
        raise DataMissing(f"{path}: header says {shape}, but {data.size} bytes follow: truncated? Fetch the file again")
    return data.reshape(shape)


def npz_files(settings: Npz) -> NamedFiles:
    """Return the archive."""
    remedy = f"Set workload.data.file to an .npz with {settings.train_images} and {settings.train_labels}"
    path = existing(settings.file, "workload.data", remedy)
    return [(path.name, path)]


def read_npz(settings: Npz, files: NamedFiles) -> RawData[Array]:
    """Return the arrays named in the settings."""
    path = files[0][1]
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise DataMissing(
                f"{path}: a single array (.npy), expected an .npz archive: numpy.savez(file, "
                f"{settings.train_images}=…, {settings.train_labels}=…)"
            )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as exc:
        raise DataMissing(f"{path}: cannot be read as an .npz archive of plain arrays: {exc}") from exc
    names = [settings.train_images, settings.train_labels, settings.test_images, settings.test_labels]
    missing = [name for name in names[:2] if name not in arrays]
    if missing:
        raise DataMissing(f"{path}: has no {' and no '.join(missing)}, only {', '.join(arrays) or 'nothing'}")
    flat = [name for name, array in arrays.items() if name in (*names, settings.train_groups) and not array.ndim]
    if flat:
        raise DataMissing(f"{path}: {flat[0]} is a single value, expected one for each example")
    values = Counter[str]()
    images = []
    for name in (settings.train_images, settings.test_images):
        if name in arrays:
            pixels, scaling = scaled(arrays[name], settings.value_range, f"{path}: {name}")
            values[scaling] += len(pixels)
            images.append(pixels)
    _check_scaling(path, values, images)
    others = [name for name in arrays if name not in (*names, settings.train_groups)]
    return RawData(
        x_train=images[0],
        y_train=arrays[settings.train_labels],
        x_test=images[1] if len(images) > 1 else None,
        y_test=arrays.get(settings.test_labels),
        test_fraction=settings.test_fraction,
        groups=arrays.get(settings.train_groups),
        where=str(path),
        title=title_of(settings, settings.file),
        kind=settings.kind,
        licence=settings.licence,
        layout=settings.layout,
        values=values,
        left_out=(f"arrays of other names: {', '.join(others)}",) if others else (),
    )


def _check_scaling(path: Path, values: Counter[str], images: Sequence[Array]) -> None:
    """Reject splits scaled by different rules, one of which leaves values outside 0 to 1."""
    outside = [each for each in images if each.dtype != np.uint8 and each.size and (each.min() < 0 or each.max() > 1)]
    if len(values) > 1 and outside:
        raise DataMissing(
            f"{path}: training and test images are of different scales ({'; '.join(values)}), and floats go from "
            f"{outside[0].min():g} to {outside[0].max():g}. Store both as one type"
        )


def images_files(settings: Images) -> NamedFiles:
    """Return every picture in a class folder."""
    found = class_folders(settings)
    files = [path for _, path in (*found.train, *(found.test or ()))]
    if not files:
        raise DataMissing(f"{found.root}: no picture below it (looked for {', '.join(PICTURES)})")
    return [(str(path.relative_to(found.root)), path) for path in sorted(files)]


def read_images(settings: Images, files: NamedFiles) -> RawData[Array]:
    """Return pictures resized to `size` x `size`; the class is the picture's folder."""
    found = class_folders(settings)
    values = Counter[str]()
    x_train = _pictures(found.train, settings, values, found.root)
    x_test = None if found.test is None else _pictures(found.test, settings, values, found.root)
    return RawData(
        x_train=x_train,
        y_train=[name for name, _ in found.train],
        x_test=x_test,
        y_test=None if found.test is None else [name for name, _ in found.test],
        test_fraction=settings.test_fraction,
        where=str(found.root),
        title=title_of(settings, settings.folder),
        kind=settings.kind,
        licence=settings.licence,
        layout="hwc",
        values=values,
        left_out=found.left_out,
    )


def _pictures(pictures: Sequence[ClassPicture], settings: Images, values: Counter[str], root: Path) -> Array:
    from fedloom.workloads._data.pictures import picture_rule, read_picture

    if not pictures:
        raise DataMissing(f"{root}: a split has no picture (looked for {', '.join(PICTURES)})")
    rule = picture_rule(settings, settings.size, settings.channels)
    images = []
    for _, path in pictures:
        pixels, scaling = read_picture(path, rule, str(path))
        images.append(pixels)
        values[scaling] += 1
    return stacked(images)
