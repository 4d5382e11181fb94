"""Shared memory by name: what one process writes another reads, and nobody reaches outside."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedloom.core.depot import Depot
from fedloom.core.errors import StorageFull


@pytest.fixture
def depot() -> Iterator[Depot]:
    depot = Depot.create()
    yield depot
    depot.close()


def test_another_process_reads_what_was_written(depot: Depot) -> None:
    buffer = depot.lease(10_000)
    buffer.memory[:5] = b"hello"
    code = (
        "import sys; from fedloom.core.depot import Depot; "
        "print(bytes(Depot.join(*sys.argv[1:3]).map(sys.argv[3], 5)).decode())"
    )
    arguments = [sys.executable, "-c", code, str(depot.path), depot.nonce, buffer.name]
    assert subprocess.run(arguments, capture_output=True, encoding="utf-8", check=True).stdout == "hello\n"


def test_who_joins_writes_too_and_cannot_write_through_a_mapping(depot: Depot) -> None:
    other = Depot.join(str(depot.path), depot.nonce)
    assert other is not None
    buffer = other.lease(3)
    buffer.memory[:3] = b"abc"
    mapped = depot.map(buffer.name, 3)
    assert bytes(mapped) == b"abc"
    with pytest.raises(TypeError):
        mapped[0] = 1
    other.close()
    assert depot.path.exists()  # only its maker removes it


@pytest.mark.parametrize("size", [0, 1, 4096, 4097])
def test_a_released_buffer_is_used_again_for_its_size_and_not_before(depot: Depot, size: int) -> None:
    first = depot.lease(size)
    assert len(first.memory) >= size
    second = depot.lease(size)
    assert second.name != first.name
    depot.release(first.name)
    assert depot.lease(size).name == first.name
    assert depot.lease(1 << 20).name not in (first.name, second.name)


def test_releasing_what_is_not_leased_does_nothing(depot: Depot) -> None:
    buffer = depot.lease(10)
    for name in (buffer.name, buffer.name, "unknown"):
        depot.release(name)
    assert depot.lease(10).name == buffer.name != depot.lease(10).name


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".", "..", "a/b", "missing", "", "a\0b"])
def test_a_name_leads_nowhere_else(depot: Depot, name: str) -> None:
    with pytest.raises(OSError):
        depot.map(name, 1)


def test_the_nonce_is_what_proves_the_host(depot: Depot, tmp_path: Path) -> None:
    assert Depot.join(str(depot.path), "another") is None
    assert Depot.join(str(tmp_path / "elsewhere"), depot.nonce) is None
    assert Depot.join("", "") is None


def test_full_memory_is_an_error_that_says_what_to_do(depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(depot.path.iterdir())
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageFull, match=r"no shared memory for a buffer of 8192 bytes.*fewer workers"):
        depot.lease(5000)
    assert sorted(depot.path.iterdir()) == before  # nothing half-made is left


def test_closing_removes_everything() -> None:
    depot = Depot.create()
    path = depot.path
    depot.lease(100)
    depot.close()
    assert not path.exists()


def test_the_memory_of_an_owner_that_was_killed_is_released_by_the_next_one() -> None:
    code = "import os; from fedloom.core.depot import Depot; d = Depot.create(); print(d.path, flush=True); os._exit(9)"
    killed = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8").stdout.strip())
    assert killed.is_dir()
    living, other = Depot.create(), Depot.create()
    assert not killed.exists() and living.path.is_dir()
    for depot in (living, other):
        depot.close()
