"""A run's folder belongs to one process, also where the file system has no locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fedloom.core.errors import RunExists
from fedloom.core.run_files import LOCK
from fedloom.server.store.claim import claimed
from fedloom.server.store.disk_run_store import DiskRunStore

ELSEWHERE = '{"host": "elsewhere", "pid": 7, "started": "1"}'


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_is_held_for_the_block(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(RunExists, match="another process uses the run folder"):
        contextlib.ExitStack().enter_context(claimed(tmp_path))
    with claimed(tmp_path):
        assert not (tmp_path / LOCK).exists()


@pytest.mark.usefixtures("without_locks")
class TestWithoutLocks:
    def test_a_file_takes_their_place(self, tmp_path: Path) -> None:
        with claimed(tmp_path), pytest.raises(RunExists, match=rf"process {os.getpid()} of .* says .*run\.lock"):
            contextlib.ExitStack().enter_context(claimed(tmp_path))
        assert not (tmp_path / LOCK).exists()
        with pytest.raises(KeyboardInterrupt), claimed(tmp_path):
            raise KeyboardInterrupt
        assert not (tmp_path / LOCK).exists()

    def test_that_of_a_process_that_has_ended_is_replaced(self, tmp_path: Path) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        for pid, started in ((ended.pid, "123"), (os.getpid(), "an earlier process of this number")):
            holder = {"host": platform.node(), "pid": pid, "started": started}
            (tmp_path / LOCK).write_text(json.dumps(holder), encoding="utf-8")
            with claimed(tmp_path):
                assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()

    @pytest.mark.parametrize(
        "content", ['{"host": "elsewhere", "pid": 7, "started": "1"}', "", "[]", "\0", '{"pid": "x"}']
    )
    def test_that_of_another_machine_is_named_and_stays(self, tmp_path: Path, content: str) -> None:
        (tmp_path / LOCK).write_text(content, encoding="utf-8")
        with pytest.raises(RunExists, match="of elsewhere uses" if "elsewhere" in content else "of an unknown machine"):
            contextlib.ExitStack().enter_context(claimed(tmp_path))
        assert (tmp_path / LOCK).read_text(encoding="utf-8") == content


def test_a_file_is_no_run_to_resume(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(RunExists, match=r"out is a file, expected a folder .* Choose another --out$"):
        DiskRunStore.create(tmp_path / "out", "x")
