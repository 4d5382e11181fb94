"""Shared by runtimes: replacing agents that die, and the environment every worker process starts with."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from fedloom.core.machine import MemoryKills
from fedloom.server.fleet.coordinator import Coordinator

_log = logging.getLogger(__name__)

MAX_EARLY_DEATHS = 3
"""Times in a row a worker may die idle without having finished a group before its runtime stops replacing it."""
MAX_DEATHS_AT_WORK = 12
"""The same for one that dies with groups: each such death costs its groups an attempt (`round.max_attempts`),
so that a client whose code ends the process fails, not the run."""


class Replacements:
    """Replaces agents that die: their groups are reassigned immediately, and a new agent takes their name.

    Args:
        coordinator: of the server the agents work for.
        spawn: starts an agent of a name.
    """

    def __init__(self, coordinator: Coordinator, spawn: Callable[[str], None]) -> None:
        self._coordinator, self._spawn = coordinator, spawn
        self._early_deaths: dict[str, int] = {}
        self._groups_done: dict[str, int] = {}
        self._stopped: set[str] = set()
        self._memory_kills = MemoryKills()

    def stopping(self, node: str) -> None:
        """Note that an agent is about to be ended because it hangs, which is not held against its name."""
        _log.warning("%s does not stop cancelled work; ending its process", node)
        self._stopped.add(node)

    def end_if_stopped(self, node: str) -> None:
        """End a silent agent of this machine whose process was stopped (SIGSTOP); another takes its name."""
        known = self._coordinator.nodes().get(node)
        facts = known.hello.facts if known is not None else {}
        pid = facts.get("pid")
        if facts.get("host") != platform.node() or not isinstance(pid, int) or not _is_stopped(pid):
            return
        _log.warning("%s sends nothing: its process %d was stopped (SIGSTOP); it is ended, and replaced", node, pid)
        self._stopped.add(node)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)

    def ended(self, node: str, how: str) -> None:
        """Replace an agent that ended unexpectedly, or stop replacing one that never finishes anything."""
        if self._coordinator.closed:
            return
        how = self._memory_kills.explained(how)
        _log.warning("%s ended (%s); starting another", node, how)
        done, at_work = self._coordinator.groups_done(node), self._coordinator.is_at_work(node)
        self._coordinator.leave(node, "", f"its process ended: {how}")
        early = done == self._groups_done.get(node, 0)
        self._groups_done[node] = done
        if node in self._stopped:
            self._stopped.discard(node)
            early = False
        self._early_deaths[node] = self._early_deaths.get(node, 0) + 1 if early else 0
        if self._early_deaths[node] > (MAX_DEATHS_AT_WORK if at_work else MAX_EARLY_DEATHS):
            self._coordinator.give_up(
                f"{node} died {self._early_deaths[node]} times in a row without finishing any work (last: {how}). "
                "Run with --runtime inline to see where, or provide more memory"
            )
            return
        self._spawn(node)


def _is_stopped(pid: int) -> bool:
    """Return whether a process has been stopped by a signal; not whether a debugger holds it."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return content.rpartition(")")[2].split()[:1] == ["T"]


def worker_environment() -> Mapping[str, str]:
    """Return the variables every worker process starts with.

    One thread for each numeric library: there is one worker per core, and sums must not depend on a thread count. The
    malloc settings keep large gradient buffers in the process (glibc would return them and fault them in again on every
    step). No telemetry.
    """
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        **dict.fromkeys(threads, "1"),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
