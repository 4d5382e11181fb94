import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedloom.core.errors import StorageFull
from fedloom.workloads._data import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))
    return tmp_path


def write_seven(folder: Path) -> None:
    np.save(folder / "x.npy", np.full(5, 7))


def test_an_entry_is_built_once() -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        write_seven(folder)

    places = [cache.entry("kind", "ab" * 32, build) for _ in range(3)]
    assert len(built) == 1 and len(set(places)) == 1
    assert cache.map_array(places[0] / "x.npy").tolist() == [7] * 5


def test_a_mapped_array_is_writable_and_the_file_keeps_its_bytes() -> None:
    place = cache.entry("kind", "ab" * 32, write_seven)
    cache.map_array(place / "x.npy")[0] = 1
    assert np.load(place / "x.npy").tolist() == [7] * 5


def test_a_truncated_entry_is_built_again() -> None:
    place = cache.entry("kind", "ab" * 32, write_seven)
    os.truncate(place / "x.npy", 40)
    assert np.load(cache.entry("kind", "ab" * 32, write_seven) / "x.npy").tolist() == [7] * 5


def test_a_failed_build_leaves_nothing_behind(own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        write_seven(folder)
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        cache.entry("kind", "ab" * 32, fail)
    assert [path.name for path in (own_cache / "kind").iterdir() if path.is_dir()] == []


def test_a_full_disk_says_where_and_what_to_do(own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageFull, match=r"FEDLOOM_CACHE") as caught:
        cache.entry("kind", "ab" * 32, fail)
    assert str(own_cache) in str(caught.value)


FETCH = """
import sys

import numpy as np

from fedloom.workloads._data import cache


def build(folder):
    with (folder.parent.parent / "builds").open("a", encoding="utf-8") as file:
        file.write("x")
    np.save(folder / "x.npy", np.full(5, 7))


print("ready", flush=True)
sys.stdin.readline()
cache.entry("kind", "cd" * 32, build)
"""


def test_processes_that_start_together_build_once(own_cache: Path) -> None:
    """Fresh processes: a fork of a program with threads may wait for a lock that nobody has any more."""
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", FETCH]
        processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait() for process in processes] == [0] * 4
    assert (own_cache / "builds").read_text(encoding="utf-8") == "x"
