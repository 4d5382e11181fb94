"""Real MRI volumes that come with packages, and a drawn one: magnitude slices from 0 to 1."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.extras import needed_by
from fedloom.core.records import Array
from fedloom.workloads._data.text_files import package_file
from fedloom.workloads.mri_unlearning.config import Anatomy

MRICRON = Path("/usr/share/mricron/templates")
"""Folder of Debian's package mricron-data."""
_BRAIN = Path("datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
_HARMLESS = {
    *((f"numpy.{core}.{name}", call) for core in ("core", "_core") for name, call in (
        ("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}  # fmt: skip
"""What the pickle of mdreg's liver calls; nothing else is loaded."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One acquisition of magnitude images."""

    images: Array
    """(slices, h, w), float32, from 0 to 1."""
    spacing: float
    """Distance of neighbouring slices; mm."""
    contrast: int = 0
    """Number among the contrasts of the same anatomy."""


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of arrays; refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> object:
        """Return one of the few functions that make arrays."""
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's own names of 1.x
            return super().find_class(module, name)


def load_volumes(anatomy: Anatomy) -> tuple[list[Volume], list[tuple[str, Path]]]:
    """Return an anatomy's volumes, one per contrast, and the files they are read from.

    Raises:
        DataMissing: the package is not installed, or its file is damaged; the message says how to get it.
        PackageMissing: the extra `mri` is not installed.
    """
    if anatomy == "joint":
        return [_joint()], []
    find, remedy, read = _SOURCES[anatomy]
    path = find()
    if path is None or not path.is_file():
        raise DataMissing(f"workload.data: the volume {anatomy!r} is not on this machine. Run: {remedy}")
    try:
        return read(path), [(path.name, path)]
    except (OSError, ValueError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as exc:
        raise DataMissing(f"workload.data: {path} cannot be read ({exc}). Install it anew: {remedy}") from exc


def _nifti(path: Path) -> tuple[Array, tuple[float, ...]]:
    with needed_by("workload 'mri_unlearning'"):
        import nibabel
    image = nibabel.load(path)
    return np.asarray(image.dataobj, np.float32), tuple(map(float, image.header.get_zooms()))


def _axial(path: Path) -> list[Volume]:
    """Return a head's axial slices, nose up."""
    data, spacing = _nifti(path)
    return [_volume(np.rot90(data, axes=(0, 1)).transpose(2, 0, 1), spacing[2])]


def _diffusion(path: Path) -> list[Volume]:
    data, spacing = _nifti(path)
    return [_volume(np.rot90(data[..., 0], axes=(0, 1)).transpose(2, 0, 1), min(spacing[2], 6.0))]


def _liver(path: Path) -> list[Volume]:
    with path.open("rb") as file:
        content = _ArraysOnly(file).load()
    if not isinstance(content, dict) or np.ndim(content["array"]) != 4:
        raise ValueError("expected a 4-D array")
    data = np.asarray(content["array"], np.float32)
    spacing = float(content["spacing"][2])
    return [
        _volume(np.rot90(data[..., angle], axes=(0, 1)).transpose(2, 0, 1), spacing, angle)
        for angle in range(data.shape[3])
    ]


def _joint() -> Volume:
    """Draw two bone shafts with bright rims, a gap of cartilage and muscle; real only as a stand-in for a knee."""
    rng, side, count = np.random.default_rng(7), 96, 60
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    slices = []
    for place in np.linspace(-1, 1, count):
        width, tilt = 0.34 * (1.15 - 0.5 * place**2), 0.12 * place
        body = ((x / 0.8) ** 2 + (y / 0.95) ** 2) < 1.0 - 0.3 * place**2
        image = np.where(body, 0.32, 0.0)
        for sign in (-1, 1):
            depth = np.maximum(np.abs((x - tilt * sign) / width) ** 4, 0) + (np.maximum(0.06 - sign * y, 0) / 0.06) ** 2
            image = np.where(body & (depth < 1.0), 0.95, image)
            image = np.where(body & (depth < 0.62), 0.6, image)
        image = np.where(body & (np.abs(y) < 0.05) & (np.abs(x) < width * 1.1), 0.12, image)
        texture = np.sin(23 * x + 5 * place) * np.sin(19 * y - 7 * place) + 0.3 * rng.standard_normal((side, side))
        slices.append(np.clip(image * (1 + 0.1 * texture), 0, None))
    return _volume(np.stack(slices), 2.0)


def _volume(images: Array, spacing: float, contrast: int = 0) -> Volume:
    """Return a volume scaled to the maximum 1; extreme values above the 99.95th percentile are cut."""
    top = float(np.percentile(images, 99.95))
    if not np.isfinite(images).all() or not top > 0:
        raise ValueError("expected finite magnitudes that are not all 0")
    return Volume(np.clip(images / top, 0.0, 1.0).astype(np.float32), spacing, contrast)


_DEBIAN = "apt-get install mricron-data"
_SOURCES: Mapping[str, tuple[Callable[[], Path | None], str, Callable[[Path], list[Volume]]]] = {
    "brain": (lambda: package_file("nilearn", _BRAIN), "pip install 'fedloom[mri]'", _axial),
    "liver": (lambda: package_file("mdreg", Path("datafiles/VFA.pkl")), "pip install 'fedloom[mri]'", _liver),
    "diffusion": (
        lambda: package_file("dipy", Path("data/files/S0_10slices.nii.gz")),
        "pip install --no-deps dipy==1.12.1",
        _diffusion,
    ),
    "head": (lambda: MRICRON / "ch2.nii.gz", _DEBIAN, _axial),
    "macaque": (lambda: MRICRON / "inia19-t1-brain.nii.gz", _DEBIAN, _axial),
}
