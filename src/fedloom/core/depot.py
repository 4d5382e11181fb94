"""Frames shared by the processes of one host: files in memory, mapped by each reader.

A server makes a depot; agents that can read its nonce file are on the same host and join it. Buffers are reused from
round to round (a fresh 100 MB mapping costs more than copying into an old one), and so are the readers' mappings.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedloom.core.errors import StorageFull

FREE_BYTES = 4 << 30
"""Default limit of the buffers one process has free for later use; bytes."""
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Buffer:
    """A writable piece of shared memory with a name others can map."""

    name: str
    memory: memoryview


MEMORY = Path("/dev/shm")
"""Where a system keeps files in memory."""
_OVERFLOW = "overflow"
"""Link in a depot's folder to the folder on disk for buffers that memory has no room for."""
_ADVICE = (
    "Enlarge /dev/shm (`docker run --shm-size 2g`, an emptyDir with medium: Memory), set TMPDIR to a folder with room, "
    "or use fewer workers"
)


class Depot:
    """One process's access to the host's shared frames. Only `map` is thread-safe; each owner has its own instance.

    Args:
        path: the depot's folder.
        owner: whether this process created it, and removes it.
        free_bytes: limit of the buffers that are free for later use; those free longest are removed beyond it.
    """

    def __init__(self, path: Path, *, owner: bool, free_bytes: int = FREE_BYTES) -> None:
        self.path = path
        self._owner, self._free_bytes = owner, free_bytes
        self._prefix = secrets.token_hex(6)
        self._counter = itertools.count()
        self._free: dict[int, list[Buffer]] = {}
        """By capacity, least recently returned first."""
        self._free_now = 0
        """Total size; bytes."""
        self._leased: dict[str, Buffer] = {}
        self._maps: dict[str, memoryview] = {}
        self._beside: Depot | None = None
        """The depot that has the overflow folder; None for those that did not make it."""
        self._alive: IO[bytes] | None = None
        """Locked while the creator of the depot is alive."""

    @classmethod
    def create(cls) -> Depot:
        """Create a depot in memory (`/dev/shm`) if there is room, otherwise in the temporary folder.

        Raises:
            StorageFull: neither can be written.
        """
        failures: list[str] = []
        for root in dict.fromkeys((MEMORY, Path(tempfile.gettempdir()))):
            try:
                depot = cls._made(root)
                if root == MEMORY:
                    depot._make_overflow()
                return depot
            except OSError as exc:
                failures.append(f"{root}: {exc.strerror}")
        raise StorageFull(f"no place for the memory that processes share: {'; '.join(failures)}. {_ADVICE}")

    @classmethod
    def _made(cls, root: Path) -> Depot:
        _reap(root)
        depot = cls(Path(tempfile.mkdtemp(prefix="fedloom-", dir=root)), owner=True)
        depot._alive = open(_private(depot.path / ".owner"), "wb")  # noqa: SIM115  # open for as long as the depot is there
        fcntl.flock(depot._alive, fcntl.LOCK_EX)
        (depot.path / ".owner").rename(depot.path / "owner")  # seen by others only once it is locked
        with open(_private(depot.path / "nonce"), "wb") as nonce:
            nonce.write(secrets.token_hex(16).encode())
        return depot

    def _make_overflow(self) -> None:
        """Make the folder for buffers that memory has no room for; without one there is just less room."""
        with contextlib.suppress(OSError):
            _reap(Path(tempfile.gettempdir()))
            self._beside = Depot._made(Path(tempfile.gettempdir()))
            (self.path / _OVERFLOW).symlink_to(self._beside.path)

    @classmethod
    def join(cls, path: str, nonce: str) -> Depot | None:
        """Return the depot at `path` if it is on this host and accessible; otherwise None."""
        with contextlib.suppress(OSError):
            if path and nonce and (Path(path) / "nonce").read_text(encoding="utf-8") == nonce:
                return cls(Path(path), owner=False)
        return None

    @property
    def nonce(self) -> str:
        """Return the secret that proves that a process sees the same memory."""
        return (self.path / "nonce").read_text(encoding="utf-8")

    def lease(self, size: int) -> Buffer:
        """Lease a buffer of at least `size` bytes, recycled if one of that size is free.

        Raises:
            StorageFull: the host's shared memory is exhausted.
        """
        capacity = -(-max(size, 1) // _PAGE) * _PAGE
        buffer = self._take_free(capacity) or self._new(capacity)
        self._leased[buffer.name] = buffer
        return buffer

    def release(self, name: str) -> None:
        """Return a leased buffer for reuse; its bytes may change from now on."""
        buffer = self._leased.pop(name, None)
        if buffer is None:
            return
        capacity = len(buffer.memory)
        self._free.setdefault(capacity, []).append(buffer)
        self._free[capacity] = self._free.pop(capacity)  # last in the order of use
        self._free_now += capacity
        while self._free_now > self._free_bytes and (surplus := self._take_free(next(iter(self._free)))) is not None:
            (self.path / surplus.name).unlink(missing_ok=True)

    def abandon(self, name: str) -> None:
        """Remove a leased buffer without reuse: processes that mapped it still see its contents."""
        if self._leased.pop(name, None) is not None:
            (self.path / name).unlink(missing_ok=True)

    def map(self, name: str, size: int) -> memoryview:
        """Return the first `size` bytes of any process's buffer, read-only; mappings are cached."""
        memory = self._maps.get(name)
        if memory is None or len(memory) < size:
            inner = name.removeprefix(f"{_OVERFLOW}/")
            if "/" in inner or inner.startswith(".") or inner in ("", _OVERFLOW):
                raise FileNotFoundError(f"{name!r} is not the name of a buffer")
            try:
                with (self.path / name).open("rb") as file:
                    memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except ValueError as exc:  # a name with a zero byte in it, or an empty file
                raise FileNotFoundError(f"{name!r} is not the name of a buffer: {exc}") from exc
            there = {known: mapped for known, mapped in self._maps.items() if (self.path / known).exists()}
            self._maps = {**there, name: memory}  # a new one each time: another thread may be reading the old one
        return memory[:size]

    def close(self) -> None:
        """Drop all buffers; the process that made the depot removes it from memory."""
        self._free.clear()
        self._free_now = 0
        self._leased.clear()
        self._maps.clear()
        if self._beside is not None:
            self._beside.close()
        if self._owner:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._alive is not None:
            self._alive.close()

    def _take_free(self, capacity: int) -> Buffer | None:
        free = self._free.get(capacity)
        if free is None:
            return None
        buffer = free.pop()
        if not free:
            del self._free[capacity]
        self._free_now -= capacity
        return buffer

    def _new(self, capacity: int) -> Buffer:
        """Make a buffer, in the overflow folder where memory has no room for it."""
        name = f"{self._prefix}-{next(self._counter)}"
        try:
            return self._reserve(name, capacity)
        except OSError as exc:
            try:
                return self._reserve(f"{_OVERFLOW}/{name}", capacity)
            except OSError as beside:
                free = shutil.disk_usage(self.path).free if self.path.exists() else 0
                raise StorageFull(
                    f"no shared memory for a buffer of {capacity} bytes in {self.path} ({free} bytes free): {exc}; nor "
                    f"on disk: {beside.strerror}. {_ADVICE}"
                ) from exc

    def _reserve(self, name: str, capacity: int) -> Buffer:
        path = self.path / name
        try:
            with open(_private(path), "w+b") as file:
                # Reserving the pages now turns a full memory disk into an error here instead of a SIGBUS later.
                os.posix_fallocate(file.fileno(), 0, capacity)
                return Buffer(name, memoryview(mmap.mmap(file.fileno(), capacity)))
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise


def _private(path: Path) -> int:
    """Open a new file that only this user can read and write; returns its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _reap(root: Path) -> None:
    """Remove the depots of owners that were killed: nothing else frees that memory."""
    for mark in root.glob("fedloom-*/owner"):
        with contextlib.suppress(OSError), mark.open("rb") as file:  # in use, or another user's
            if mark.parent.lstat().st_uid != os.geteuid():
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent, ignore_errors=True)
