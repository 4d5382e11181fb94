"""Memory that processes share, where `/dev/shm` is small, full, read-only or missing."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from fedloom.core import depot as depot_module
from fedloom.core.depot import Depot
from fedloom.core.errors import StorageFull
from fedloom.server.app import Server


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Memory and the temporary folder, both empty."""
    memory, temporary = tmp_path / "shm", tmp_path / "tmp"
    memory.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(depot_module, "MEMORY", memory)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return memory, temporary


def fill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no more files be reserved in a folder."""
    reserve = os.posix_fallocate

    def full(fd: int, offset: int, size: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)


def test_a_buffer_that_memory_has_no_room_for_is_on_disk_and_is_used_likewise(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, temporary = places
    owner = Depot.create()
    other = Depot.join(str(owner.path), owner.nonce)
    assert other is not None and owner.path.is_relative_to(memory)
    first = owner.lease(5000)
    fill(memory, monkeypatch)
    for depot, reader in ((owner, other), (other, owner)):
        buffer = depot.lease(9000)
        buffer.memory[:5] = b"hello"
        assert (owner.path / buffer.name).resolve().is_relative_to(temporary)
        assert bytes(reader.map(buffer.name, 5)) == b"hello"
        depot.release(buffer.name)
        assert depot.lease(9000).name == buffer.name
    assert bytes(other.map(first.name, 1)) == b"\0"
    owner.close()
    assert not list(memory.iterdir()) and not list(temporary.iterdir())


def test_without_room_anywhere_the_message_names_what_helps(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    depot = Depot.create()
    fill(places[0].parent, monkeypatch)
    with pytest.raises(StorageFull, match=r"no shared memory for a buffer of 8192 bytes .*--shm-size.*TMPDIR"):
        depot.lease(5000)
    assert not [path for path in depot.path.iterdir() if path.is_file() and path.name not in ("owner", "nonce")]
    depot.close()


@pytest.mark.parametrize("name", ["overflow/../x", "overflow/.owner", "overflow/", "overflow", "a/b", "overflow/a/b"])
def test_no_other_file_can_be_named(places: tuple[Path, Path], name: str) -> None:
    depot = Depot.create()
    with pytest.raises(FileNotFoundError, match="is not the name of a buffer"):
        depot.map(name, 1)
    depot.close()


def test_without_memory_it_is_in_the_temporary_folder(places: tuple[Path, Path]) -> None:
    places[0].rmdir()
    depot = Depot.create()
    assert depot.path.is_relative_to(places[1])
    depot.close()


def test_without_any_place_a_server_shares_none(places: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    for folder in places:
        folder.rmdir()
    with pytest.raises(StorageFull, match="no place for the memory that processes share"):
        Depot.create()
    with Server() as server:
        assert server.payloads.depot is None
    assert "through the network instead" in caplog.text
