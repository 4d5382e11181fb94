"""Files of a run, fetched into a folder: each checked by its digest, continued after a break, replaced as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from fedloom.core import files, run_files
from fedloom.core.errors import BadMessage, NotFound, RunExists, ServerUnreachable, StorageFull

ATTEMPTS = 3
"""How often the files are listed again because one has changed under the download."""
PATIENCE_S = 120.0
"""Seconds without a byte after which a download ends; received bytes stay."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 10.0
MAX_FILES = 10_000
"""Files of a run at most."""
MAX_DEPTH = 16
"""Folders above a file at most."""
_PART = re.compile(r"[\w][\w .+-]{0,120}")
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file that a server offers."""

    name: str
    """Path in the run's folder, with slashes."""
    kind: str
    size: int
    sha256: str
    length: int
    """Bytes of the server's file that these are made of."""


class FileSource(Protocol):
    """Where files come from."""

    def files(self) -> tuple[RemoteFile, ...]:
        """List the files."""

    def fetch(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        """Yield a file's content from an offset on.

        Raises:
            ServerUnreachable: the connection broke, or there is no server now.
            NotFound: the file has changed.
        """


class Changed(Exception):
    """A file is no longer the one that was listed."""


class Download:
    """Downloads of one run into one folder.

    Args:
        source: of the files.
        run_id: of the run; the folder is its own from now on.
        folder: where they go.
        say: takes sentences for the user.
        sleep: pauses; for tests.
        clock: seconds that pass; for tests.
    """

    def __init__(
        self,
        source: FileSource,
        run_id: str,
        folder: Path,
        say: Callable[[str], None],
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._run_id, self._folder, self._say = source, run_id, folder, say
        self._sleep, self._clock = sleep, clock

    def all(self) -> list[Path]:
        """Fetch every file the source lists; those that are here already are not sent again.

        Returns:
            Their places.

        Raises:
            RunExists: the folder has something else in it.
            StorageFull: the disk is full; received bytes stay, and the next attempt continues there.
            ServerUnreachable: no byte came for `PATIENCE_S`; received bytes stay.
            BadMessage: the server sends what it did not list.
        """
        require_free_folder(self._folder, self._run_id)
        for _ in range(ATTEMPTS):
            listed = self._source.files()
            for each in listed:
                _check(each)
            with contextlib.suppress(Changed):
                return [self._one(each) for each in listed]
        raise BadMessage(
            f"files of run {self._run_id!r} changed {ATTEMPTS} times while they were fetched; try again, or when the "
            "run has ended"
        )

    def _one(self, file: RemoteFile) -> Path:
        target = self._folder / file.name
        if target.is_file() and target.stat().st_size == file.size and _sha256(target) == file.sha256:
            return target
        part = target.with_name(f".{target.name}.{file.sha256[:16]}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for old in target.parent.glob(f".{target.name}.*.part"):
                if old != part:
                    old.unlink()
            self._fill(part, file)
            if _sha256(part) != file.sha256:
                part.unlink()
                raise Changed
            part.replace(target)
        except OSError as exc:
            if not files.is_full(exc):
                raise
            here = part.stat().st_size if part.exists() else 0
            raise StorageFull(
                f"cannot write to {target.parent}: {exc.strerror}. {here:,} of the {file.size:,} bytes of {file.name} "
                f"are there; free at least {file.size - here:,} bytes and run the command again, which continues"
            ) from exc
        return target

    def _fill(self, part: Path, file: RemoteFile) -> None:
        """Append what is missing, over breaks of the connection."""
        pause, silent_since = FIRST_PAUSE_S, self._clock()
        while (here := _size(part)) != file.size:
            if here > file.size:
                part.unlink()
                continue
            try:
                self._append(part, file, here)
                if _size(part) < file.size:
                    raise Changed
            except NotFound as exc:
                raise Changed from exc
            except ServerUnreachable:
                if _size(part) > here:
                    pause, silent_since = FIRST_PAUSE_S, self._clock()
                if self._clock() - silent_since > PATIENCE_S:
                    raise
                self._say(f"{file.name}: the connection broke after {_size(part):,} of {file.size:,} bytes; retrying")
                self._sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_S)
        if not part.exists():  # an empty file
            part.touch()

    def _append(self, part: Path, file: RemoteFile, here: int) -> None:
        with part.open("ab", buffering=0) as opened:
            for data in self._source.fetch(file, here):
                here += len(data)
                if here > file.size:
                    raise BadMessage(f"{file.name}: the server sends more than the {file.size:,} bytes it listed")
                rest = memoryview(data)
                while rest:
                    rest = rest[opened.write(rest) :]
            os.fsync(opened.fileno())


def require_free_folder(folder: Path, run_id: str) -> None:
    """Refuse a folder with anything but files of this run.

    Raises:
        RunExists: it has something else in it.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if folder.is_dir() and (folder / run_files.RUN).is_file() and run_files.read_run_id(folder) == run_id:
        return
    if folder.is_dir() and all(each.name.startswith(f".{run_files.RUN}.") for each in folder.iterdir()):
        return
    raise RunExists(
        f"{folder} is not empty, and does not have the files of run {run_id!r}; expected a new folder, or the one it "
        "was fetched into before. Choose another --out"
    )


def _check(file: RemoteFile) -> None:
    """Refuse names that could lead out of the folder: the server chooses them."""
    parts = PurePosixPath(file.name).parts
    if "/".join(parts) != file.name or not 1 <= len(parts) <= MAX_DEPTH or not all(map(_PART.fullmatch, parts)):
        raise BadMessage(f"the server lists a file {file.name[:80]!r}; expected names of folders and a name")
    if not re.fullmatch("[0-9a-f]{64}", file.sha256):
        raise BadMessage(f"the server lists {file.name!r} without its SHA-256")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
