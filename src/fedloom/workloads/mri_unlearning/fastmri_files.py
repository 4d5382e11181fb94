"""Volumes in fastMRI's HDF5 layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.extras import needed_by
from fedloom.core.records import Array
from fedloom.workloads.mri_unlearning.config import FastMri
from fedloom.workloads.mri_unlearning.volume_set import Acquired, VolumeSet


class Stored(Protocol):
    """An array in a file, read slice by slice; h5py's data sets are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""

    def __getitem__(self, rows: slice) -> Array:
        """Return some slices."""


_TARGETS = ("reconstruction_rss", "reconstruction_esc")
_REMEDY = "expected fastMRI's layout: 'kspace', and 'reconstruction_rss' or 'reconstruction_esc'"


def fastmri(settings: FastMri) -> VolumeSet:
    """Return the volumes of two folders; those with an acquisition of `forget` are to be forgotten.

    Raises:
        DataMissing: a folder is missing or empty, or a file is damaged or has another layout; the message says which.
    """
    folders = {"train_folder": settings.train_folder, "test_folder": settings.test_folder}
    found = {key: _files(Path(folder), key) for key, folder in folders.items()}
    train = [read_volume(path, settings) for path in found["train_folder"]]
    test = [read_volume(path, settings) for path in found["test_folder"]]
    anatomies = tuple(sorted({each.anatomy for each in (*train, *test)}))
    kinds = sorted({(each.forget, each.anatomy) for each in train})
    sites = {anatomy: number for number, (_, anatomy) in enumerate(kinds)}
    return VolumeSet(
        train=[_at(each, sites[each.anatomy]) for each in train],
        test=test,
        anatomies=anatomies,
        files=[(path.name, path) for paths in found.values() for path in paths],
        info={"name": f"fastMRI volumes of {Path(settings.train_folder).name}"},
    )


def read_volume(path: Path, settings: FastMri) -> Acquired:
    """Return a file's volume, scaled so that the reference's maximum is 1.

    Raises:
        DataMissing: it is damaged, or has another layout.
    """
    with needed_by("workload 'mri_unlearning'"):
        import h5py
    try:
        with h5py.File(path, "r") as file:
            kspace, target = _arrays(file["kspace"], [file[name] for name in _TARGETS if name in file], settings)
            acquisition = str(file.attrs.get("acquisition", "unknown"))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as exc:
        raise DataMissing(f"workload.data: {path} cannot be read ({exc}); {_REMEDY}") from exc
    if not np.isfinite(kspace).all() or not np.isfinite(target).all() or not target.max() > 0:
        raise DataMissing(f"workload.data: {path}: expected finite k-space and a reference that is not all 0")
    top = float(target.max())
    scaled = (kspace / top).astype(np.complex64), (target / top).astype(np.float32)
    return Acquired(path.name, acquisition, 0, acquisition in settings.forget, *scaled)


def _arrays(kspace: Stored, targets: Sequence[Stored], settings: FastMri) -> tuple[Array, Array]:
    """Return the middle slices of k-space, (n, coils, h, w), and of the reference, (n, h', w')."""
    count = kspace.shape[0] if kspace.shape else 0
    used = min(count, settings.max_slices or count)
    rows = slice((count - used) // 2, (count - used) // 2 + used)
    found = np.asarray(kspace[rows])
    if found.ndim == 3:
        found = found[:, None]
    if found.ndim != 4 or found.dtype.kind != "c" or 0 in found.shape:
        raise ValueError(
            f"kspace: expected complex (slices, coils, h, w) or (slices, h, w), got {found.dtype} {kspace.shape}"
        )
    target = np.asarray(targets[0][rows]) if targets else _full(found)
    if targets and targets[0].shape[:1] != kspace.shape[:1]:
        raise ValueError(f"reference: expected {kspace.shape[0]} slices as in k-space, got shape {targets[0].shape}")
    fits = target.ndim == 3 and all(
        mine <= whole for mine, whole in zip(target.shape[1:], found.shape[2:], strict=True)
    )
    if not fits or 0 in target.shape:
        raise ValueError(
            f"reference: expected (slices, h' <= {found.shape[2]}, w' <= {found.shape[3]}), got {target.shape}"
        )
    return found, target


def _full(kspace: Array) -> Array:
    """Return the root-sum-of-squares image of fully sampled k-space."""
    axes = (-2, -1)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)
    return np.asarray(np.sqrt((np.abs(images) ** 2).sum(1)))


def _files(folder: Path, key: str) -> list[Path]:
    if not folder.is_dir():
        raise DataMissing(f"workload.data.{key}: expected a folder with .h5 files, but {str(folder)!r} is none")
    found = sorted(folder.glob("*.h5"))
    if not found:
        raise DataMissing(f"workload.data.{key}: {str(folder)!r} has no .h5 file")
    return found


def _at(volume: Acquired, site: int) -> Acquired:
    return Acquired(volume.name, volume.anatomy, site, volume.forget, volume.kspace, volume.target)
