"""Shared memory: used again, refused when full, closed to foreign names, given back at the end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedloom.core.depot import Depot
from fedloom.core.errors import StorageFull


@pytest.fixture
def depot() -> Iterator[Depot]:
    made = Depot.create()
    yield made
    made.close()


def test_a_released_buffer_of_the_size_is_used_again(depot: Depot) -> None:
    first = depot.lease(100_000)
    first.memory[:5] = b"hello"
    depot.release(first.name)
    assert depot.lease(99_999).name == first.name, "both round up to the same number of pages"
    assert depot.lease(100_000).name != first.name, "it is out again"
    assert depot.lease(200_000).name != first.name, "another size"


def test_free_buffers_beyond_the_limit_are_removed_those_of_the_size_used_longest_ago_first() -> None:
    """In pages of 4096 bytes: room for three free ones."""
    made = Depot.create()
    depot = Depot(made.path, owner=False, free_bytes=3 * 4096)
    old, new, large = depot.lease(1), depot.lease(1), depot.lease(8192)
    for buffer in (old, large, new):
        depot.release(buffer.name)
    assert not (made.path / large.name).exists(), "two pages free since before the others' size was used"
    assert (made.path / old.name).exists() and (made.path / new.name).exists()
    assert {depot.lease(1).name for _ in range(2)} == {old.name, new.name}
    depot.release(depot.lease(4 * 4096).name)
    assert sorted(path.name for path in made.path.glob("*-*")) == sorted([old.name, new.name]), "it alone is too large"
    made.close()


def test_releasing_twice_or_what_is_unknown_changes_nothing(depot: Depot) -> None:
    buffer = depot.lease(10)
    for name in (buffer.name, buffer.name, "nobody's"):
        depot.release(name)
    assert depot.lease(10).name == buffer.name
    assert depot.lease(10).name != buffer.name


def test_another_hand_reads_what_was_written(depot: Depot) -> None:
    other = Depot.join(str(depot.path), depot.nonce)
    assert other is not None
    buffer = depot.lease(8)
    buffer.memory[:4] = b"abcd"
    view = other.map(buffer.name, 4)
    assert bytes(view) == b"abcd" and view.readonly
    buffer.memory[:4] = b"efgh"
    assert bytes(other.map(buffer.name, 4)) == b"efgh", "the mapping is kept, the bytes are shared"
    other.close()
    assert depot.path.exists(), "only its maker removes it"


def test_what_proves_the_same_host_must_fit(depot: Depot, tmp_path: Path) -> None:
    assert Depot.join(str(depot.path), "x" * 32) is None
    assert Depot.join(str(tmp_path), depot.nonce) is None
    assert Depot.join("", depot.nonce) is None
    assert Depot.join(str(depot.path), "") is None


@pytest.mark.parametrize(
    "name", ["../nonce", "/etc/passwd", ".", "..", ".hidden", "a/b", "nul\0byte", "absent", "owner"]
)
def test_foreign_names_are_refused(depot: Depot, name: str) -> None:
    with pytest.raises(OSError):
        depot.map(name, 10)


def test_more_bytes_than_a_buffer_has_are_not_handed_out(depot: Depot) -> None:
    buffer = depot.lease(10)
    assert len(depot.map(buffer.name, 1 << 30)) == len(buffer.memory)


def test_full_memory_is_an_error_here_and_not_a_signal_later(depot: Depot) -> None:
    with pytest.raises(StorageFull, match=r"no shared memory for a buffer of .* bytes free.*fewer workers") as caught:
        depot.lease(1 << 50)
    assert str(depot.path) in str(caught.value)
    found = sorted(path.name for path in depot.path.iterdir())
    assert found == ["nonce", "overflow", "owner"], "nothing half-made stays"
    assert depot.lease(10).memory, "and smaller ones still fit"


def test_closing_removes_it(depot: Depot) -> None:
    depot.lease(10)
    depot.close()
    assert not depot.path.exists()


def test_a_killed_owners_memory_is_released_by_the_next() -> None:
    code = (
        "import os; from pathlib import Path; from fedloom.core import depot\n"
        "made = depot.Depot.create(); made.lease(1 << 20); print(made.path, flush=True); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    left = Path(dead.stdout.strip())
    assert dead.returncode == -9
    alive = Depot.create()
    try:
        assert not left.exists()
        Depot.create().close()
        assert alive.path.exists(), "that of a living owner stays"
    finally:
        alive.close()
