"""Determines this process's share of its machine: CPU affinity, and control groups' limits on CPU and memory."""

from __future__ import annotations

import math
import os
from pathlib import Path

WORKER_BYTES = 512 << 20
"""Memory a worker process is reckoned with when their default number is chosen."""
WORKER_TASKS = 32
"""Processes and threads a worker is reckoned with."""
_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def default_workers(root: Path = _ROOT, groups: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many worker processes this process may keep busy: at least 1.

    Args:
        root: where control groups are mounted.
        groups: the process's own groups, as the kernel lists them.
    """
    limits = [float(usable_cores())]
    for folder in _folders(root, groups):
        limits += [limit for limit in (_cpus(folder), _memory(folder), _tasks(folder)) if limit is not None]
    return max(1, math.floor(min(limits) + 1e-9))


def usable_cores() -> int:
    """Return the cores this process may run on."""
    return len(os.sched_getaffinity(0)) or 1


def _folders(root: Path, groups: Path) -> list[Path]:
    """Return the folders of the process's groups and of all groups around them, in both versions of the interface."""
    found = {root, *(root / name for name in ("cpu", "cpu,cpuacct", "memory", "pids"))}
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = root / controllers if controllers else root
        steps = [step for step in path.split("/") if step not in ("", "..")]
        found |= {base.joinpath(*steps[:count]) for count in range(len(steps) + 1)}
    return sorted(found)


def _cpus(folder: Path) -> float | None:
    both = _words(folder / "cpu.max")
    if len(both) == 2:
        return _ratio(both[0], both[1])
    return _ratio("".join(_words(folder / "cpu.cfs_quota_us")), "".join(_words(folder / "cpu.cfs_period_us")))


def _memory(folder: Path) -> float | None:
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    return limit / WORKER_BYTES if limit is not None and limit < _UNLIMITED else None


def _tasks(folder: Path) -> float | None:
    limit = _number(folder / "pids.max")
    return (limit - (_number(folder / "pids.current") or 0)) / WORKER_TASKS if limit is not None else None


def _ratio(quota: str, period: str) -> float | None:
    """Return quota / period; None if either is no positive number, such as `max` or -1."""
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []
