"""The sets that are scored: which there are, and their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.strategies.mano.workload.config import CifarC, Config, SetFolders
from fedloom.strategies.mano.workload.corruptions.suite import CORRUPTIONS, Bank, corrupted
from fedloom.workloads._data.class_folders import PICTURES
from fedloom.workloads._data.images import ImageData
from fedloom.workloads._data.raw import existing, files_below
from fedloom.workloads._data.settings import ImageSource
from fedloom.workloads._data.values import stacked

Pixels = tuple[Array, Array]
"""Images (n, c, h, w), float32 from 0 to 1, and labels (n,), int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftedSet:
    """One set, created on demand."""

    group: str
    """Group of sets for one line: `mild`, `harsh`, `style`, `subpopulation`, or the name of the user's folder."""
    family: str
    name: str
    severity: int
    load: Callable[[], Pixels]


def shifted_sets(config: Config, data: ImageData, styles: Array | None, seed: int) -> list[ShiftedSet]:
    """Return every set of an experiment, in a fixed order; none is created yet.

    Raises:
        DataMissing: a folder of sets is missing or invalid.
    """
    clean = np.arange(min(config.suite.images, len(data.y_test)))
    found = [clean_set(data, clean)]
    for bank in config.suite.banks:
        found += _suite(config, data, clean, bank, bank, seed)
    if styles is not None:
        unseen = np.flatnonzero(styles >= config.styles.clusters - config.styles.unseen)
        found += _by_style(config, data, styles)
        found += _suite(config, data, unseen[: config.suite.images], "subpopulation", "mild", seed)
    for own in config.sets:
        found += _cifar_c(own, data) if isinstance(own, CifarC) else _folders(own, data, config.data)
    return found


def clean_set(data: ImageData, rows: Array) -> ShiftedSet:
    """Return the unmodified test images."""
    return ShiftedSet(group="clean", family="none", name="clean", severity=0, load=lambda: pixels_of(data, rows))


def pixels_of(data: ImageData, rows: Array) -> Pixels:
    """Return the test images with pixels from 0 to 1."""
    mean, std = data.moments
    return np.clip(data.x_test[rows] * std + mean, 0.0, 1.0).astype(np.float32), np.asarray(data.y_test[rows])


def _suite(config: Config, data: ImageData, rows: Array, group: str, bank: Bank, seed: int) -> Iterator[ShiftedSet]:
    def load(name: str, severity: int) -> Pixels:
        images, labels = pixels_of(data, rows)
        return corrupted(images, name, severity, bank=bank, seed=seed, rows=rows), labels

    for name, corruption in CORRUPTIONS.items():
        for severity in config.suite.severities:
            yield ShiftedSet(
                group=group,
                family=corruption.family,
                name=name,
                severity=severity,
                load=lambda name=name, severity=severity: load(name, severity),  # type: ignore[misc]
            )


def _by_style(config: Config, data: ImageData, styles: Array) -> Iterator[ShiftedSet]:
    """Yield the test images of each style, clean."""
    for style in range(config.styles.clusters):
        rows = np.flatnonzero(styles == style)[: config.suite.images]
        if len(rows) < 2:
            continue
        seen = style < config.styles.clusters - config.styles.unseen
        yield ShiftedSet(
            group="style",
            family="seen" if seen else "unseen",
            name=f"style {style}",
            severity=0,
            load=lambda rows=rows: pixels_of(data, rows),  # type: ignore[misc]
        )


def _cifar_c(own: CifarC, data: ImageData) -> list[ShiftedSet]:
    remedy = "Give the folder of labels.npy and one .npy per corruption in workload.sets"
    folder = existing(own.folder, "workload.sets", remedy)
    files = [path for _, path in files_below(folder, (".npy",)) if path.name != "labels.npy"]
    if not (folder / "labels.npy").is_file() or not files:
        raise DataMissing(f"{folder}: expected labels.npy and one .npy of images per corruption. {remedy}")
    labels = _read(folder / "labels.npy").reshape(-1).astype(np.int64)
    found = []
    for path in files:
        images = _read(path)
        count = len(images) // own.severities
        if len(images) % own.severities or len(labels) not in (count, len(images)):
            raise DataMissing(
                f"{path}: {len(images)} images in {own.severities} severities do not match {len(labels)} labels of "
                "labels.npy; set severities of this entry of workload.sets"
            )
        for severity in range(1, own.severities + 1):
            piece = slice((severity - 1) * count, severity * count)
            truth = labels[piece] if len(labels) == len(images) else labels
            found.append(
                ShiftedSet(
                    group=folder.name,
                    family=path.stem.partition("_")[0],
                    name=path.stem,
                    severity=severity,
                    load=lambda images=images, piece=piece, truth=truth, path=path: (  # type: ignore[misc]
                        _fitting(images[piece], data, path),
                        truth,
                    ),
                )
            )
    return found


def _folders(own: SetFolders, data: ImageData, source: ImageSource) -> list[ShiftedSet]:
    folder = existing(own.folder, "workload.sets", "Give a folder of sets, each a folder of class folders")
    names = list(data.info["label_names"])
    found = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        strange = sorted(child.name for child in place.iterdir() if child.is_dir() and child.name not in names)
        if strange:
            raise DataMissing(f"{place / strange[0]}: not a class of the training data, which are {', '.join(names)}")
        found.append(
            ShiftedSet(
                group=folder.name,
                family=place.name,
                name=place.name,
                severity=0,
                load=lambda place=place: _pictures(place, names, data, source),  # type: ignore[misc]
            )
        )
    if not found:
        raise DataMissing(f"{folder}: no folder in it; expected SET/CLASS/picture")
    return found


def _pictures(place: Path, names: list[str], data: ImageData, source: ImageSource) -> Pixels:
    from fedloom.workloads._data.pictures import picture_rule, read_picture

    channels, height, _ = data.shape
    rule = picture_rule(source, height, channels)
    images, labels = [], []
    for label, name in enumerate(names):
        for _, path in files_below(place / name, PICTURES) if (place / name).is_dir() else []:
            images.append(read_picture(path, rule, str(path))[0])
            labels.append(label)
    if len(images) < 2:
        raise DataMissing(f"{place}: {len(images)} pictures in class folders; a set needs at least two")
    return _fitting(stacked(images), data, place), np.array(labels, np.int64)


def _read(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise DataMissing(f"{path}: cannot be read as an array: {exc}") from exc
    return array


def _fitting(images: Array, data: ImageData, path: Path) -> Array:
    """Images as (n, c, h, w) from 0 to 1."""
    pixels = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1) if images.ndim == 4 else images
    if pixels.shape[1:] != data.shape:
        raise DataMissing(f"{path}: images of shape {images.shape[1:]} for a model of (c, h, w) = {data.shape}")
    scale = np.float32(255.0 if pixels.dtype == np.uint8 else 1.0)
    return np.ascontiguousarray(pixels, np.float32) / scale
