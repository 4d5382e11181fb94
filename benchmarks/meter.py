"""Measuring: CPU seconds of a tree of processes, wall clock per round, memory counted once however it is shared."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_SAMPLE_S = 0.25
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


def tree_cpu_s(root: psutil.Process | None = None) -> float:
    """User and system seconds of a process and all its living descendants (of this process where none is given)."""
    root = root or psutil.Process()
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.Error:
            continue
    return total


@dataclass
class Clock:
    """A runner's own clock: `begin`, then `lap` at the end of every round. The first round is warm-up.

    The tree's CPU time is read twice only, after the first and after the last round, outside of what is timed.
    """

    rounds: int
    laps: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    _begun: float = 0.0

    def begin(self) -> None:
        """The first round starts now."""
        self._begun = time.perf_counter()

    def lap(self) -> None:
        """A round has ended, the next one starts."""
        self.laps.append(time.perf_counter() - self._begun)
        if len(self.laps) == 1:
            self.cpu_s = -tree_cpu_s()
        if len(self.laps) == self.rounds:
            self.cpu_s += tree_cpu_s()
        self._begun = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """Seconds per round, warm-up apart; the shape of `result.json`."""
        if len(self.laps) != self.rounds or self.rounds < 2:
            raise RuntimeError(f"expected {self.rounds} rounds, at least 2, the runner did {len(self.laps)}")
        return {
            "rounds": self.rounds,
            "first_round_s": self.laps[0],
            "wall_s": statistics.median(self.laps[1:]),
            "cpu_s": self.cpu_s / (self.rounds - 1),
        }


def measure(module: str, arguments: Sequence[str], log: Path) -> dict[str, float]:
    """Run `python -m module arguments…`; its peak memory and its whole cost.

    Returns:
        `pss_mb`, the highest sum over its processes of proportional set sizes (pages that k processes share count
        1/k in each), sampled four times a second; `processes` at most alive; `total_wall_s`.

    Raises:
        RuntimeError: the runner failed; the message ends with what it wrote.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    begin, pss, processes = time.perf_counter(), 0, 0
    with log.open("w", encoding="utf-8") as out:
        runner = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            while runner.poll() is None:
                size, count = _memory(runner.pid)
                pss, processes = max(pss, size), max(processes, count)
                time.sleep(_SAMPLE_S)
        finally:
            if runner.poll() is None:
                runner.terminate()
                runner.wait()
    if runner.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with exit code {runner.returncode}:\n{tail}")
    return {"pss_mb": pss / 2**20, "processes": processes, "total_wall_s": time.perf_counter() - begin}


def _memory(pid: int) -> tuple[int, int]:
    """PSS bytes and number of processes of a tree."""
    total, count = 0, 0
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for process in tree:
        try:
            total += process.memory_full_info().pss
            count += 1
        except psutil.Error:
            continue
    return total, count
