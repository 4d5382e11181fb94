"""Folders of prepared arrays, made once per content and mapped by every process.

An entry is named by the digest of everything it was made from, so it is never stale. It is built next to its target,
flushed to disk and renamed, under a lock: processes that start together build it once, and a process killed while
building leaves nothing that looks finished.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedloom.core.errors import StorageFull
from fedloom.core.records import Array, Info, JsonObject
from fedloom.core.user_folders import cache_folder

_MANIFEST = "entry.json"
_CHUNK = 1 << 20
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
"""What keeps an entry from being written that another folder may not have."""


def digest_of(values: object) -> str:
    """Return the hexadecimal SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest_of_files(files: Iterable[tuple[str, Path]]) -> str:
    """Return the hexadecimal SHA-256 over files: each file's name (as given), its length, its bytes."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of an entry; if it is missing or damaged, `build` fills it first.

    Args:
        kind: its content (`images`, `partitions`, …): a sub-folder of the cache.
        key: digest of everything the entry is made from.
        build: writes the entry's files into the empty folder it is given.

    Raises:
        StorageFull: the cache's disk is full.
    """
    home = cache_folder() / kind
    place = home / key[:32]
    if _complete(place):
        return place
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(home / f"{key[:32]}.lock"):
            if not _complete(place):
                _build(place, build)
    except OSError as exc:
        if exc.errno not in _NO_PLACE:
            raise
        raise StorageFull(
            f"the cache {str(home)!r} cannot take the prepared data: {exc.strerror}. "
            "Make room there, or set FEDLOOM_CACHE to a folder on another disk that can be written"
        ) from exc
    return place


def map_array(path: Path) -> Array:
    """Map a `.npy` file copy-on-write: pages are shared by all processes and writes never reach the file."""
    return np.load(path, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]


def write_json(path: Path, value: Info) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> JsonObject:
    """Read a JSON object."""
    value: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    return value


def _complete(place: Path) -> bool:
    """Return whether every file of the entry exists in its full size."""
    try:
        sizes = read_json(place / _MANIFEST)
    except (OSError, ValueError):
        return False
    return all((place / name).is_file() and (place / name).stat().st_size == size for name, size in sizes.items())


def _build(place: Path, build: Callable[[Path], None]) -> None:
    if place.exists():
        shutil.rmtree(place)
    beside = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    try:
        build(beside)
        write_json(beside / _MANIFEST, {path.name: path.stat().st_size for path in sorted(beside.iterdir())})
        for path in (*beside.iterdir(), beside):
            _flush(path)
        beside.rename(place)
        _flush(place.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
