"""Image sources that are files: scikit-learn's digits, IDX folders, NumPy archives, folders of pictures."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.raw import RawData, existing, files_below, hold_out, number_groups, title_of
from fedloom.workloads._data.settings import FASHION_MNIST, Available, Digits, Idx, Images, Npz
from fedloom.workloads._data.values import scaled, stacked

NamedFiles = list[tuple[str, Path]]
PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".jp2"),
)
_IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION_SHA256 = "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
"""Of Fashion-MNIST's training images, decompressed."""
_FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


def digits_files(settings: Digits) -> NamedFiles:
    """The table inside scikit-learn, found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    folder = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else Path()
    path = folder / "datasets" / "data" / "digits.csv.gz"
    if spec is None or not path.is_file():
        raise DataMissing("the digits ship inside scikit-learn, which is not installed here: pip install scikit-learn")
    return [(path.name, path)]


def read_digits(settings: Digits, files: NamedFiles) -> RawData[Array]:
    """Grey values 0 to 16, as floats from 0 to 1; every fifth example (of a fixed shuffle) is held out."""
    with gzip.open(files[0][1], "rt", encoding="utf-8") as table:
        values = np.loadtxt(table, delimiter=",")
    images, labels = (values[:, :-1] / 16.0).reshape(-1, 8, 8).astype(np.float32), values[:, -1].astype(np.int64)
    train, test = hold_out(len(labels), 0.2)
    return RawData(
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
        label_names=tuple(map(str, range(10))),
        title="scikit-learn digits (UCI Optical Recognition of Handwritten Digits, test part)",
        kind="real",
        licence="BSD-3-Clause (as shipped in scikit-learn)",
        values={"4 bits: value / 16": len(labels)},
    )


def available_files(settings: Available) -> NamedFiles:
    """Fashion-MNIST's files, or the digits' table."""
    return idx_files(Idx()) if Path(FASHION_MNIST).is_dir() else digits_files(Digits())


def read_available(settings: Available, files: NamedFiles) -> RawData[Array]:
    """Whichever the files are."""
    return read_idx(Idx(), files) if len(files) == len(_IDX_NAMES) else read_digits(Digits(), files)


def idx_files(settings: Idx) -> NamedFiles:
    """The four files, plain before compressed."""
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
    """Images and labels of both splits."""
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
        y_train=y_train.astype(np.int64),
        x_test=x_test,
        y_test=y_test.astype(np.int64),
        label_names=_FASHION_NAMES if fashion else (),
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
    """An IDX file of unsigned bytes: two zero bytes, type 8, rank, big-endian sizes, data."""
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
    """The archive."""
    path = existing(settings.file, "workload.data", "Set workload.data.file to an .npz with x_train and y_train")
    return [(path.name, path)]


def read_npz(settings: Npz, files: NamedFiles) -> RawData[Array]:
    """The arrays, and a split where the archive has no test set."""
    path = files[0][1]
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as exc:
        raise DataMissing(f"{path}: cannot be read as an .npz archive of plain arrays: {exc}") from exc
    missing = [name for name in ("x_train", "y_train") if name not in arrays]
    if missing:
        raise DataMissing(f"{path}: has no {' and no '.join(missing)}, only {', '.join(arrays) or 'nothing'}")
    groups = number_groups(arrays["groups_train"].tolist()) if "groups_train" in arrays else None
    x_train, y_train = arrays["x_train"], arrays["y_train"].reshape(-1)
    if "x_test" in arrays and "y_test" in arrays:
        x_test, y_test = arrays["x_test"], arrays["y_test"].reshape(-1)
    else:
        train, test = hold_out(len(y_train), settings.test_fraction)
        x_test, y_test = x_train[test], y_train[test]
        x_train, y_train = x_train[train], y_train[train]
        groups = groups[train] if groups is not None else None
    values = Counter[str]()
    sides = []
    for name, images in (("x_train", x_train), ("x_test", x_test)):
        pixels, scaling = scaled(images, settings.value_range, f"{path}: {name}")
        values[scaling] += len(pixels)
        sides.append(pixels)
    x_train, x_test = sides
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        if labels.dtype.kind not in "iu" or len(labels) != len(images):
            raise DataMissing(
                f"{path}: {len(images)} images with {len(labels)} labels of {labels.dtype}: expected integers"
            )
    return RawData(
        x_train=x_train,
        y_train=y_train.astype(np.int64),
        x_test=x_test,
        y_test=y_test.astype(np.int64),
        groups=groups,
        title=title_of(settings, settings.file),
        kind=settings.kind,
        licence=settings.licence,
        layout=settings.layout,
        values=values,
    )


def images_files(settings: Images) -> NamedFiles:
    """Every picture below the folder."""
    folder = existing(
        settings.folder, "workload.data", "Set workload.data.folder to a folder with one folder per class"
    )
    found = files_below(folder, PICTURES)
    if not found:
        raise DataMissing(f"{folder}: no picture below it (looked for {', '.join(PICTURES)})")
    return found


def read_images(settings: Images, files: NamedFiles) -> RawData[Array]:
    """Pictures resized to `size` x `size`; the class is the folder a picture lies in."""
    folder = Path(settings.folder).expanduser()
    has_test = (folder / "test").is_dir()
    roots = [folder / "train" if (folder / "train").is_dir() else folder, folder / "test" if has_test else None]
    names = sorted(child.name for child in roots[0].iterdir() if child.is_dir()) if roots[0] else []
    if len(names) < 2:
        raise DataMissing(f"{roots[0]}: expected one folder per class, at least two; found {names or 'none'}")
    sides = [_read_classes(root, names, settings) for root in roots if root is not None]
    if has_test:
        (x_train, y_train), (x_test, y_test) = (side[:2] for side in sides)
    else:
        train, test = hold_out(len(sides[0][1]), settings.test_fraction)
        (x_train, y_train), (x_test, y_test) = ((sides[0][0][rows], sides[0][1][rows]) for rows in (train, test))
    return RawData(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        label_names=tuple(names),
        title=title_of(settings, settings.folder),
        kind=settings.kind,
        licence=settings.licence,
        layout="hwc",
        values=sum((side[2] for side in sides), Counter()),
    )


def _read_classes(root: Path, names: list[str], settings: Images) -> tuple[Array, Array, Counter[str]]:
    from fedloom.workloads._data.pictures import picture_rule, read_picture

    rule = picture_rule(settings, settings.size, settings.channels)
    images, labels, values = [], [], Counter[str]()
    for label, name in enumerate(names):
        for _, path in files_below(root / name, PICTURES) if (root / name).is_dir() else []:
            pixels, scaling = read_picture(path, rule, str(path))
            images.append(pixels)
            labels.append(label)
            values[scaling] += 1
    if not images:
        raise DataMissing(f"{root}: no picture in the class folders {', '.join(names)}")
    return stacked(images), np.array(labels, np.int64), values
