"""What a result's bits depend on beside the code and the seed: processor, libraries, data. Names cached results."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

DATA_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("/usr/share/games/fortunes"))
"""Where Debian's packages put the data of presets; with others there, or none, the base is run again."""
_SWITCHES = ("ATEN_", "BLIS_", "DNNL_", "GOTO_", "MKL_", "NPY_", "OMP_", "ONEDNN_", "OPENBLAS_", "TORCH_")
"""Variables with these beginnings choose kernels or numbers of threads."""


def fingerprint(variables: Mapping[str, str]) -> dict[str, object]:
    """Describe this machine as far as bits may depend on it, as JSON values; `variables` are those of the runs."""
    packages = sorted({f"{each.name}=={each.version}" for each in importlib.metadata.distributions()})
    return {
        "processor": _processor(Path("/proc/cpuinfo")),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "packages": digest([each for each in packages if not each.startswith("fedloom==")]),
        "switches": switches(variables),
        "data": digest([list(_listing(folder)) for folder in DATA_FOLDERS]),
    }


def digest(value: object) -> str:
    """Digest of a JSON value: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def switches(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that choose numeric kernels."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(_SWITCHES)}


def _processor(cpuinfo: Path) -> str:
    """Model and feature flags of the processor; the model alone names several kinds on rented machines."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    pairs = (line.partition(":") for line in lines)
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    return "; ".join(facts[name] for name in wanted if name in facts)


def _listing(folder: Path) -> Iterable[tuple[str, int]]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file():
            yield str(path.relative_to(folder)), path.stat().st_size
