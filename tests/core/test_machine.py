"""The default number of workers: what affinity and control groups leave to this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedloom.core.machine import MemoryKills, default_workers

GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "workers"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"memory.max": "max"}, 64),
        ({"memory.max": str(3 * GIB)}, 6),
        ({"memory/memory.limit_in_bytes": str(9223372036854771712)}, 64),
        ({"memory/memory.limit_in_bytes": str(GIB)}, 2),
        ({"pids.max": "200", "pids.current": "40"}, 5),
        ({"pids.max": "10", "pids.current": "40"}, 1),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "900000 100000", "memory.max": "max"}, 4),
        ({"a/b/cpu.max": "400000 100000", "a/pids.max": "96"}, 3),
        ({"cpu.max": "nonsense", "pids.max": "", "memory.max": "\udcff"}, 64),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    (tmp_path / "own").write_text("0::/a/b\n", encoding="utf-8")
    assert default_workers(tmp_path / "cgroup", tmp_path / "own") == workers
    assert default_workers(tmp_path / "cgroup", tmp_path / "none") >= 1


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert default_workers(tmp_path, tmp_path / "none") == 2


KILLED = "signal 9"


@pytest.mark.parametrize(
    ("counter", "limit", "said"),
    [
        ({"a/memory.events": "low 0\noom 2\noom_kill {}\n"}, {"a/memory.max": str(GIB)}, "limit of 1024 MiB of its"),
        ({"memory.events": "oom_kill {}\noom_group_kill 9\n"}, {}, "at the limit of its control group"),
        ({"memory/a/memory.oom_control": "under_oom 0\noom_kill {}\n"},
         {"memory/a/memory.limit_in_bytes": str(300 << 20)}, "limit of 300 MiB of its"),
        ({"vmstat": "nr_free_pages 7\noom_kill {}\n"}, {}, "processes of this machine for want of memory"),
    ],
)  # fmt: skip
def test_a_process_that_the_kernel_ended_for_want_of_memory_is_said_to_be(
    tmp_path: Path, counter: Mapping[str, str], limit: Mapping[str, str], said: str
) -> None:
    now = [100.0]

    def count(kills: int) -> None:
        for name, text in counter.items():
            path = tmp_path / "vmstat" if name == "vmstat" else tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format(kills), encoding="utf-8")

    for name, text in limit.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text, encoding="utf-8")
    (tmp_path / "own").write_text("0::/a\n9:memory:/a\n", encoding="utf-8")
    count(3)
    kills = MemoryKills(tmp_path / "cgroup", tmp_path / "own", tmp_path / "vmstat", lambda: now[0])
    assert kills.explained(KILLED) == KILLED, "those before its start are none of its"
    count(5)
    assert said in kills.explained(KILLED) and said in kills.explained(KILLED), "two at once"
    assert kills.explained("exit status 1") == "exit status 1" and kills.explained("signal 11") == "signal 11"
    assert said in kills.explained("Ray says WorkerCrashedError")
    now[0] += 6.0
    assert kills.explained(KILLED) == KILLED, "long after"


def test_without_counters_nothing_is_said(tmp_path: Path) -> None:
    kills = MemoryKills(tmp_path, tmp_path / "none", tmp_path / "none")
    assert kills.explained(KILLED) == KILLED
