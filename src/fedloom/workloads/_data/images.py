"""Normalised images, prepared once and mapped by every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import Array, Info, JsonObject
from fedloom.workloads._data import cache
from fedloom.workloads._data.checked import Examples, checked, reading
from fedloom.workloads._data.hub import hub_files, read_hub_images
from fedloom.workloads._data.image_files import (
    available_files,
    digits_files,
    idx_files,
    images_files,
    npz_files,
    read_available,
    read_digits,
    read_idx,
    read_images,
    read_npz,
)
from fedloom.workloads._data.published_files import (
    cifar10_files,
    read_cifar10,
    read_stl10,
    read_svhn,
    stl10_files,
    svhn_files,
)
from fedloom.workloads._data.raw import RawData
from fedloom.workloads._data.resizing import resized, with_channels
from fedloom.workloads._data.settings import (
    Available,
    Cifar10,
    Digits,
    HubImages,
    Idx,
    Images,
    ImageSource,
    Labelled,
    Layout,
    LocalImages,
    Npz,
    Stl10,
    Svhn,
)
from fedloom.workloads._data.values import unit

_FORMAT = 3
_CHANNELS = (1, 3, 4)
_BLOCK = 4096
"""Images normalised at a time."""

_SOURCES: dict[type, tuple[Callable[..., list[tuple[str, Path]]], Callable[..., RawData[Array]]]] = {
    Digits: (digits_files, read_digits),
    Available: (available_files, read_available),
    Idx: (idx_files, read_idx),
    Cifar10: (cifar10_files, read_cifar10),
    Stl10: (stl10_files, read_stl10),
    Svhn: (svhn_files, read_svhn),
    Images: (images_files, read_images),
    Npz: (npz_files, read_npz),
    HubImages: (hub_files, read_hub_images),
}
_PLACES = ("folder", "file", "dataset")
"""Settings of the data's location; only the last step of the path (the data's name) matters for the result."""


@dataclass(frozen=True, slots=True)
class ImageData:
    """Images (n, c, h, w), float32, normalised per channel; labels (n,), int64; both mapped from the cache."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    groups: Array | None
    """Group of each training example, (n,), int64."""
    info: Info
    """Provenance: title, kind, licence, sha256 of the source's bytes, counts, shape, mean and std, label names."""
    sha256: str
    """Digest of source and preparation."""
    sums: Info | None = None
    """What the mean and deviation are made of (`core.data_schema.SUMS`); None if the settings give them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height, width."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    @property
    def moments(self) -> tuple[Array, Array]:
        """Return mean and deviation of the normalisation, each (c, 1, 1), float32: pixel = x * std + mean."""
        mean, std = (np.asarray(self.info[name], np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))
        return mean, std

    def check_pixels(self, workload: str) -> None:
        """Check that images are pixels from 0 to 1, for a workload that changes them as pixels.

        Raises:
            ConfigError: values are outside; the message names the setting of the white value.
        """
        low, high = self.info["range"]
        if low < 0.0 or high > 1.0:
            raise ConfigError(
                f"workload.data: {self.info['name']} has values from {low:g} to {high:g} (black is 0, white is 1), and "
                f"{workload!r} works on pixels from 0 to 1. Set workload.data.value_range to [black, white]"
            )

    @property
    def num_labels(self) -> int:
        """Return the number of classes."""
        return int(self.info["num_labels"])


def load_images(settings: ImageSource, size: int | None = None, channels: int | None = None) -> ImageData:
    """Return the images of a source, from the cache if they are there.

    Args:
        settings: which source.
        size: side they are resized to, pixels; None leaves them.
        channels: 1 for grey, 3 for colour; None leaves them.

    Raises:
        DataMissing: the source is missing on this machine, or invalid.
    """
    list_files, read = _SOURCES[type(settings)]
    with reading(f"workload.data (source {settings.source!r})"):
        files = list_files(settings)
        source_sha256 = cache.digest_of_files(files)
    chosen = {k: Path(v).name if k in _PLACES else v for k, v in settings.model_dump(mode="json").items()}
    form = [] if size is None and channels is None else [size, channels]
    key = cache.digest_of([_FORMAT, source_sha256, chosen, *form])

    def build(folder: Path) -> None:
        with reading(str(files[0][1])):
            raw = read(settings, files)
            examples = checked(raw, settings if isinstance(settings, Labelled) else None)
            sides = [_formed(_channels_first(x, raw), size, channels) for x in (examples.x_train, examples.x_test)]
        facts = {**examples.facts, "sha256": source_sha256, "values": dict(sorted(raw.values.items()))}
        _prepare(examples, sides, facts, _given_moments(settings), folder)

    place = cache.entry("images", key, build)
    groups = place / "groups.npy"
    x_train, y_train, x_test, y_test = (
        np.asarray(cache.map_array(place / f"{name}.npy")) for name in ("x_train", "y_train", "x_test", "y_test")
    )
    return ImageData(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        groups=np.load(groups) if groups.is_file() else None,
        info=cache.read_json(place / "info.json"),
        sha256=key,
        sums=cache.read_json(place / "sums.json") if _given_moments(settings) is None else None,
    )


def _formed(x: Array, size: int | None, channels: int | None) -> Array:
    """Return images (n, c, h, w) at the given size and with the given channels; None leaves either unchanged."""
    if size is None and channels is None:
        return x
    blocks = []
    for start in range(0, len(x), _BLOCK):
        block = unit(x[start : start + _BLOCK])
        block = block if channels is None else with_channels(block, channels)
        blocks.append(block if size is None else resized(block, size))
    return np.concatenate(blocks)


def _given_moments(settings: ImageSource) -> tuple[Array, Array] | None:
    """Return mean and deviation that the experiment gives, each (c,), float32."""
    if not isinstance(settings, LocalImages) or settings.mean is None or settings.std is None:
        return None
    return np.array(settings.mean, np.float32), np.array(settings.std, np.float32)


def _prepare(
    examples: Examples[Array],
    sides: Sequence[Array],
    facts: JsonObject,
    given: tuple[Array, Array] | None,
    folder: Path,
) -> None:
    """Normalise and write the arrays."""
    x_train, x_test = sides
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataMissing(f"{facts['name']}: training images are {x_train.shape[1:]}, test images {x_test.shape[1:]}")
    sums = _sums(x_train)
    mean, std = _moments(sums) if given is None else given
    if len(mean) != x_train.shape[1]:
        raise ConfigError(
            f"workload.data.mean and std: {len(mean)} values each, but the images have {x_train.shape[1]} channels"
        )
    edges = []
    for name, x in (("x_train", x_train), ("x_test", x_test)):
        out = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=x.shape)
        for start in range(0, len(x), _BLOCK):
            block = unit(x[start : start + _BLOCK])
            edges += [float(block.min()), float(block.max())]
            out[start : start + _BLOCK] = (block - mean[:, None, None]) / std[:, None, None]
        out.flush()
    np.save(folder / "y_train.npy", examples.y_train)
    np.save(folder / "y_test.npy", examples.y_test)
    if examples.groups is not None:
        np.save(folder / "groups.npy", examples.groups)
    shape, moments = list(x_train.shape[1:]), {"mean": list(map(float, mean)), "std": list(map(float, std))}
    cache.write_json(folder / "sums.json", sums)
    cache.write_json(folder / "info.json", {**facts, "shape": shape, **moments, "range": [min(edges), max(edges)]})


def _channels_first(x: Array, raw: RawData[Array]) -> Array:
    """Return images as (n, c, h, w).

    Raises:
        DataMissing: they have no such shape, or one that may be read in two ways.
    """
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        raise DataMissing(f"{raw.where}: images have shape {x.shape}, expected (n, h, w), (n, h, w, c) or (n, c, h, w)")
    layout = raw.layout or _layout(x, raw.where)
    channels = x.shape[3 if layout == "hwc" else 1]
    if channels not in _CHANNELS:
        raise DataMissing(
            f"{raw.where}: images have {channels} channels (shape {x.shape}, {layout}), expected 1, 3 or 4"
        )
    return x.transpose(0, 3, 1, 2) if layout == "hwc" else x


def _layout(x: Array, where: str) -> Layout:
    """Return the order of axes that gives a known number of channels, or otherwise square images."""
    last, first = x.shape[3] in _CHANNELS, x.shape[1] in _CHANNELS
    if last and first:
        last, first = x.shape[1] == x.shape[2], x.shape[2] == x.shape[3]
    if last == first:
        raise DataMissing(
            f"{where}: images of shape {x.shape} may be (n, h, w, c) or (n, c, h, w). Set workload.data.layout to "
            '"hwc" or "chw"'
        )
    return "hwc" if last else "chw"


def _sums(x: Array) -> JsonObject:
    """Return the number of pixels, and each channel's sum and sum of squares, black being 0 and white 1."""
    total, squares, count = np.zeros(x.shape[1]), np.zeros(x.shape[1]), 0
    for start in range(0, len(x), _BLOCK):
        block = unit(x[start : start + _BLOCK]).astype(np.float64)
        total += block.sum(axis=(0, 2, 3))
        squares += (block**2).sum(axis=(0, 2, 3))
        count += block[:, 0].size
    return {"n": count, "sum": total.tolist(), "squares": squares.tolist()}


def _moments(sums: Info) -> tuple[Array, Array]:
    """Return mean and standard deviation of each channel; float32, a flat channel's std is 1."""
    mean = np.asarray(sums["sum"]) / sums["n"]
    std = np.sqrt(np.maximum(np.asarray(sums["squares"]) / sums["n"] - mean**2, 0.0))
    return mean.astype(np.float32), np.where(std > 1e-8, std, 1.0).astype(np.float32)
