"""Records the machine of a run: its numbers depend on it besides settings and seed."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedloom.core.records import JsonObject
from fedloom.reporting.page import write_page

FILE = "machine.json"


def write(folder: Path) -> None:
    """Write `machine.json` to a run's folder; called by the process that made the run."""
    write_page(folder / FILE, json.dumps(describe()) + "\n")


def read(folder: Path) -> dict[str, str]:
    """Return the machine of a run; empty if it was not recorded."""
    path = folder / FILE
    values: JsonObject = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: str(value) for name, value in values.items()}


def describe() -> dict[str, str]:
    """Return processor, system, versions of the libraries that compute, instruction set in use, and the date (UTC).

    PyTorch's are those of the copy that this process has loaded; without one they are left out.
    """
    torch = sys.modules.get("torch")
    found = {
        "processor": _processor(Path("/proc/cpuinfo")),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if torch is not None:
        found |= {"torch": str(torch.__version__), "capability": str(torch.backends.cpu.get_cpu_capability())}
    return {**found, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def common(machines: list[Mapping[str, str]]) -> dict[str, str]:
    """Return the facts of several runs' machines: a value they share, or all of them, in order, by ` to `."""
    names = dict.fromkeys(name for each in machines for name in each)
    found = {name: sorted({each.get(name, "not recorded") for each in machines}) for name in names}
    return {name: " to ".join(values) if name == "date" else ", ".join(values) for name, values in found.items()}


def _processor(cpuinfo: Path) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
