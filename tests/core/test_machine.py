"""The default number of workers: what affinity and control groups leave to this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedloom.core.machine import default_workers

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
