"""Determines this process's share of its machine: CPU affinity, and control groups' limits on CPU and memory."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

WORKER_BYTES = 512 << 20
"""Memory a worker process is reckoned with when their default number is chosen."""
WORKER_TASKS = 32
"""Processes and threads a worker is reckoned with."""
_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
_KILLED = "signal 9"
_JUST_S = 5.0
"""Seconds after the kernel has ended a process within which a killed one counts as that."""
_ADVICE = "Set fewer runtime.workers, a smaller batch or model, or give it more memory"


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


class MemoryKills:
    """Notices that the kernel ends processes for want of memory.

    Args:
        root, groups: as for `default_workers`.
        machine: the kernel's counters of the whole machine.
        now: a clock; seconds.
    """

    def __init__(
        self,
        root: Path = _ROOT,
        groups: Path = Path("/proc/self/cgroup"),
        machine: Path = Path("/proc/vmstat"),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders, self._machine, self._now = _folders(root, groups), machine, now
        self._here, self._anywhere = self._counts()
        self._here_at = self._anywhere_at = -math.inf

    def explained(self, how: str) -> str:
        """Return how a process has ended, with want of memory as the cause where the kernel has just acted on that."""
        if how.startswith(("signal ", "exit status ")) and how != _KILLED:
            return how
        (here, anywhere), now = self._counts(), self._now()
        self._here_at = now if here > self._here else self._here_at
        self._anywhere_at = now if anywhere > self._anywhere else self._anywhere_at
        self._here, self._anywhere = here, anywhere
        if now - self._here_at <= _JUST_S:
            limits = [limit for folder in self._folders if (limit := _memory_bytes(folder)) is not None]
            of = f" of {min(limits) >> 20} MiB" if limits else ""
            return f"{how}: the kernel ended it for want of memory, at the limit{of} of its control group. {_ADVICE}"
        if now - self._anywhere_at <= _JUST_S:
            return f"{how}: the kernel has just ended processes of this machine for want of memory. {_ADVICE}"
        return how

    def _counts(self) -> tuple[int, int]:
        """Return how many processes were ended in these control groups, and on the machine."""
        files = [folder / name for folder in self._folders for name in ("memory.events", "memory.oom_control")]
        return sum(map(_kills, files)), _kills(self._machine)


def _kills(file: Path) -> int:
    words = _words(file)
    return next((int(count) for name, count in itertools.pairwise(words) if name == "oom_kill"), 0)


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
    limit = _memory_bytes(folder)
    return None if limit is None else limit / WORKER_BYTES


def _memory_bytes(folder: Path) -> int | None:
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    return limit if limit is not None and limit < _UNLIMITED else None


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
