"""Data sets in Hugging Face's form: a saved folder, Parquet files, or a name if there is a network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array, JsonObject
from fedloom.workloads._data.raw import RawData, X, existing, files_below, title_of
from fedloom.workloads._data.settings import HubData, HubImages
from fedloom.workloads._data.text_settings import HubText
from fedloom.workloads._data.values import stacked

if TYPE_CHECKING:
    import datasets

_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "training", "testing")
"""Words in a file's name that indicate a split."""
_OFFLINE = {"images": 'source = "digits", which is always there', "texts": 'source = "csv" with a file of your own'}


def _is_local(name: str) -> bool:
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.endswith(".parquet")


def hub_files(settings: HubData) -> list[tuple[str, Path]]:
    """Return the files of the data set: here, or in the `datasets` library's cache after the download."""
    if _is_local(settings.dataset):
        remedy = "Set workload.data.dataset to a folder written by save_to_disk, or to Parquet files"
        return files_below(existing(settings.dataset, "workload.data", remedy))
    splits = _load(settings)
    stored = {Path(file["filename"]) for split in splits.values() for file in split.cache_files}
    return [(path.name, path) for path in sorted(stored)]


def read_hub_images(settings: HubImages, files: list[tuple[str, Path]]) -> RawData[Array]:
    """Return images decoded with Pillow, as (n, h, w, c) uint8."""
    values = Counter[str]()

    def pictures(split: datasets.Dataset) -> Array:
        found, counted = _pictures(split, settings)
        values.update(counted)
        return found

    return replace(_read(settings, settings.image_column, pictures), layout="hwc", values=values)


def read_hub_text(settings: HubText, files: list[tuple[str, Path]]) -> RawData[list[str]]:
    """Return texts as lists of strings."""
    return _read(settings, settings.text_column, lambda split: _texts(split, settings))


def _read(settings: HubData, column: str, examples: Callable[[datasets.Dataset], X]) -> RawData[X]:
    splits = _load(settings)
    if settings.train_split not in splits:
        raise DataMissing(
            f"{settings.dataset}: no split {settings.train_split!r}, it has {', '.join(splits)}. "
            "Set workload.data.train_split"
        )
    wanted = [column, settings.label_column, *([settings.group_column] if settings.group_column else [])]
    train: datasets.Dataset = splits[settings.train_split]
    test: datasets.Dataset | None = splits.get(settings.test_split) if settings.test_split else None
    for split in (train, *([test] if test is not None else [])):
        missing = [name for name in wanted[: 2 if split is test else None] if name not in split.column_names]
        if missing:
            raise DataMissing(f"{settings.dataset}: no column {missing[0]!r}, it has {', '.join(split.column_names)}")
    declared = getattr(train.features[settings.label_column], "names", None)
    others = [
        f"split {name!r}: {len(splits[name]):,} examples"
        for name in splits
        if name not in (settings.train_split, settings.test_split)
    ]
    return RawData(
        x_train=examples(train),
        y_train=list(train[settings.label_column]),
        x_test=None if test is None else examples(test),
        y_test=None if test is None else list(test[settings.label_column]),
        test_fraction=settings.test_fraction,
        groups=list(train[settings.group_column]) if settings.group_column else None,
        label_names=tuple(declared or ()),
        where=settings.dataset,
        title=title_of(settings, settings.dataset),
        kind=settings.kind,
        licence=settings.licence or (train.info.license or None),
        left_out=tuple(others),
    )


def _load(settings: HubData) -> JsonObject:
    """Return splits by name."""
    import datasets

    path = Path(settings.dataset).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        elif _is_local(settings.dataset):
            files = [(name, str(file)) for name, file in files_below(path, (".parquet",))]
            if not files:
                raise DataMissing(f"{path}: found neither a data set written by save_to_disk nor Parquet files")
            loaded = datasets.DatasetDict(
                {name: datasets.Dataset.from_parquet(paths) for name, paths in _by_split(files, settings).items()}
            )
        else:
            loaded = datasets.load_dataset(settings.dataset, settings.subset)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as exc:
        substitute = _OFFLINE["images" if isinstance(settings, HubImages) else "texts"]
        where = "on disk" if _is_local(settings.dataset) else "on the hub (is there a network?)"
        raise DataMissing(
            f"workload.data: cannot load {settings.dataset!r} {where}: {type(exc).__name__}: {exc}. Without a network, "
            f"give a folder written by save_to_disk, or use {substitute}"
        ) from exc
    return dict(loaded) if isinstance(loaded, dict) else {settings.train_split: loaded}


def _by_split(files: list[tuple[str, str]], settings: HubData) -> dict[str, list[str]]:
    """Return Parquet files by the split named in their path; those without one are for training.

    Raises:
        DataMissing: some files name the training split, and others none.
    """
    known = [settings.train_split, *([settings.test_split] if settings.test_split else []), *_SPLITS]
    splits: dict[str, list[str]] = {}
    for name, file in files:
        words = re.split(r"[^a-z0-9]+", name.lower())
        split = next((split for split in known if split.lower() in words), "")
        splits.setdefault(split, []).append(file)
    unsaid = splits.pop("", [])
    if unsaid and settings.train_split in splits:
        raise DataMissing(
            f"{settings.dataset}: {Path(unsaid[0]).name} names no split, others name {settings.train_split!r}. Put "
            f"the words {settings.train_split!r}, {settings.test_split!r} or 'validation' into the names of all files"
        )
    return {settings.train_split: unsaid, **splits} if unsaid else splits


def _texts(split: datasets.Dataset, settings: HubText) -> list[str]:
    texts = list(split[settings.text_column])
    wrong = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataMissing(
            f"{settings.dataset}, row {wrong}: column {settings.text_column!r} is a {type(texts[wrong]).__name__}, "
            "expected text. Remove the row, or name another column in workload.data.text_column"
        )
    return texts


def _pictures(split: datasets.Dataset, settings: HubImages) -> tuple[Array, Counter[str]]:
    """Return a split's images, (n, h, w, c), and how many were scaled by which rule."""
    import datasets

    from fedloom.workloads._data.pictures import array_picture, picture_rule, read_picture

    rule = picture_rule(settings, settings.size, settings.channels)
    column = settings.image_column
    dtype = _dtype(split.features[column])
    if isinstance(split.features[column], datasets.Image):
        split = split.cast_column(column, datasets.Image(decode=False))
    pictures, values = [], Counter[str]()
    for row, value in enumerate(split[column]):
        where = f"{settings.dataset}, row {row} of column {column!r}"
        stored = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else None
        if stored is not None:
            pixels, scaling = read_picture(stored if isinstance(stored, bytes) else Path(stored), rule, where)
        else:
            pixels, scaling = array_picture(np.asarray(value, dtype), rule, where)
        pictures.append(pixels)
        values[scaling] += 1
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise DataMissing(f"{settings.dataset}: images of {len(shapes)} different shapes; set workload.data.size")
    return stacked(pictures), values


def _dtype(feature: object) -> str | None:
    """Return the type of a column of arrays or nested lists; None if it declares none."""
    while (inner := getattr(feature, "feature", None)) is not None:  # of lists, as deep as they are nested
        feature = inner
    try:
        return np.dtype(getattr(feature, "dtype", None) or "no type").name
    except TypeError:  # text, or a type of the library's own
        return None
