"""Packages that only some uses need, and the extra of fedloom that installs each.

Dependencies of the core are few: a server, an agent and a NumPy workload need no more. Other packages are imported
where they are used; an error for a missing one gives the command that installs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fedloom.core.errors import PackageMissing

EXTRAS: Mapping[str, str] = {
    "torch": "torch",
    "scipy": "torch",
    "cloudpickle": "torch",
    "PIL": "data",
    "pandas": "data",
    "datasets": "data",
    "flwr_datasets": "data",
    "sklearn": "data",
    "transformers": "text",
    "jiwer": "speech",
    "espeakng_loader": "speech",
    "soundfile": "speech",
    "captum": "xai",
    "snntorch": "spiking",
    "ray": "ray",
    "flwr": "flower",
    "prometheus_client": "server",
    "pyautoattack": "attacks",
    "constriction": "codec",
    "pillow_jxl": "codec",
    "h5py": "mri",
    "nibabel": "mri",
}
"""The extra by the name a package is imported by."""


@contextmanager
def needed_by(user: str) -> Iterator[None]:
    """Turn a missing optional package into an error with the command that installs it.

    Args:
        user: what needs the package, as a user knows it: `workload 'image_classification'`.

    Raises:
        PackageMissing: one of `EXTRAS` is not installed; other missing modules are raised as they are.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise PackageMissing(
            f"{user} needs the package {package!r}, which is not installed: pip install 'fedloom[{EXTRAS[package]}]'"
        ) from exc
