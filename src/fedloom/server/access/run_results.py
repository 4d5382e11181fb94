"""Lists and reads a run's files for its owner: with digests, and the newest model of a run that has not ended."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from fedloom.core import run_files
from fedloom.core.errors import NotFound
from fedloom.core.plugins import build_strategy
from fedloom.core.records import Record
from fedloom.core.state import load_state
from fedloom.server.access.public_text import public_json, without_paths
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.files import write_frame

FileKind = Literal["model", "report", "records", "checkpoints"]
KINDS: tuple[FileKind, ...] = get_args(FileKind)
ENDED = ("done", "failed", "interrupted")
"""Statuses of runs that are neither queued nor running."""
CHUNK_BYTES = 256 << 10
"""Bytes sent at a time."""
MAX_DIGESTS = 256
"""Digests that are remembered."""

_RECORDS = (
    run_files.RUN,
    run_files.EXPERIMENT,
    run_files.PLUGINS_LIST,
    run_files.PROVENANCE,
    run_files.WORKLOAD,
    run_files.ROUNDS,
    run_files.CHOICES,
    run_files.EVENTS,
    run_files.SUMMARY,
)
_MODELS = PurePosixPath(run_files.MODEL).parent
_SO_FAR = "model-round-"
"""Prefix of the models of runs that have not ended."""
_LINES = (run_files.ROUNDS, run_files.CHOICES, run_files.EVENTS)
_JSON = (run_files.WORKLOAD, run_files.SUMMARY)
_TEXT = (run_files.REPORT,)
"""Files that may have paths of the server in them: lines of JSON, one JSON document, plain text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """A file of a run."""

    name: str
    """Path in the run's folder, with slashes."""
    kind: FileKind
    size: int
    """Bytes that are sent."""
    sha256: str
    length: int
    """Bytes on the disk that these are made of: the file may grow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The files of a run that can be fetched now."""

    files: tuple[RunFile, ...]
    model_round: int = 0
    """The round of the model that is listed; 0 for the final one, and where there is none."""


class RunResults:
    """Lists and reads files of runs' folders. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: OrderedDict[tuple[str, int, int, int], tuple[int, str]] = OrderedDict()
        self._saving = threading.Lock()

    def files(self, folder: Path, status: str, kinds: Collection[str] = ()) -> Listing:
        """List the files of some kinds; states of clients and answers of unfinished rounds are never listed.

        The report is that of the run's last session, so a run that is queued or running has none.

        Args:
            folder: the run's.
            status: the run's.
            kinds: of `KINDS`; none for all.

        Raises:
            StorageFull: there is no room for the model of a run that has not ended.
            UnknownName: its strategy is no longer installed here.
        """
        wanted = set(kinds) or set(KINDS)
        named: list[tuple[str, FileKind]] = [(name, "records") for name in (*_RECORDS, *_copies(folder))]
        model_round = 0
        if "model" in wanted:
            name, model_round = self._model(folder, status)
            named += [(name, "model")] if name else []
        if status in ENDED:
            named.append((run_files.REPORT, "report"))
        if "checkpoints" in wanted:
            saved = sorted((folder / run_files.CHECKPOINTS).glob("*.safetensors"))
            named += [(f"{run_files.CHECKPOINTS}/{path.name}", "checkpoints") for path in saved]
        found = [self._described(folder, name, kind) for name, kind in named if kind in wanted or name == run_files.RUN]
        return Listing(files=tuple(each for each in found if each is not None), model_round=model_round)

    def read(self, folder: Path, name: str, length: int, offset: int) -> Iterator[bytes]:
        """Yield a listed file's content from an offset on, in chunks.

        Args:
            folder: the run's.
            name, length: as listed.
            offset: bytes the caller has.

        Raises:
            NotFound: it is not there, or shorter than it was.
        """
        self.require_file(folder, name, length)
        if offset > length:
            raise NotFound(f"{name[:80]!r} has {length} bytes; byte {offset} is not one of them")
        try:
            yield from _chunks(_content(folder, name, length, offset))
        except (OSError, ValueError) as exc:
            raise NotFound(f"{name[:80]!r} has changed; list the run's files again") from exc

    def require_file(self, folder: Path, name: str, length: int) -> None:
        """Check that a name is one of a file of a run that can be fetched, with at least so many bytes.

        Raises:
            NotFound: it is not.
        """
        if not _is_listed(name):
            raise NotFound(f"{name[:80]!r} is not a file of a run that can be fetched; list them first")
        place = folder / name
        try:
            inside = place.resolve().is_relative_to(folder.resolve()) and place.is_file()
            size = place.stat().st_size if inside else -1
        except (OSError, ValueError):
            size = -1
        if size < 0:
            raise NotFound(f"{name[:80]!r} is not there; list the run's files again")
        if size < length:
            raise NotFound(f"{name[:80]!r} has changed; list the run's files again")

    def _described(self, folder: Path, name: str, kind: FileKind) -> RunFile | None:
        """Return a file with its digest; None if it is not there (any more)."""
        path = folder / name
        try:
            state = path.stat()
            key = str(path), state.st_ino, state.st_mtime_ns, state.st_size
            with self._lock:
                known = self._digests.get(key)
            if known is None:
                known = _digest(_content(folder, name, state.st_size))
        except FileNotFoundError:
            return None
        with self._lock:
            self._digests[key] = known
            while len(self._digests) > MAX_DIGESTS:
                self._digests.popitem(last=False)
        return RunFile(name=name, kind=kind, size=known[0], sha256=known[1], length=state.st_size)

    def _model(self, folder: Path, status: str) -> tuple[str, int]:
        """Return the name of the model's file, and its round if it is not the final one; empty if there is none yet."""
        if status == "done" and (folder / run_files.MODEL).is_file():
            for old in (folder / _MODELS).glob(f"{_SO_FAR}*.safetensors"):
                old.unlink(missing_ok=True)
            return run_files.MODEL, 0
        with self._saving:  # one at a time: a model may be large
            return _save_so_far(DiskRunStore.open(folder), folder)


def _save_so_far(store: DiskRunStore, folder: Path) -> tuple[str, int]:
    """Write the model of the newest checkpoint to a separate file, which replaces an older one."""
    checkpoint = store.latest_checkpoint()
    if checkpoint is None:
        return "", 0
    name = str(_MODELS / f"{_SO_FAR}{checkpoint.final_round:06d}.safetensors")
    if not (folder / name).is_file():
        experiment = store.experiment()
        strategy = build_strategy(experiment.strategy, experiment)
        try:
            arrays = strategy.arrays(load_state(strategy.State, checkpoint.final_strategy, checkpoint.pinned))
        finally:
            strategy.close()
        (folder / name).parent.mkdir(exist_ok=True)
        for old in (folder / _MODELS).glob(f"{_SO_FAR}*.safetensors"):
            old.unlink(missing_ok=True)
        write_frame(folder / name, Record({"model": arrays}))
    return name, checkpoint.final_round


def _is_listed(name: str) -> bool:
    """Return whether a name can be one of a listed file, so that no other file is ever read."""
    path = PurePosixPath(name)
    if name in (*_RECORDS, run_files.REPORT, run_files.MODEL):
        return True
    plain = str(path) == name and "\0" not in name and ".." not in path.parts and "__pycache__" not in path.parts
    if plain and path.parts[:1] == (run_files.PLUGINS,) and len(path.parts) > 1:
        return True
    plain = plain and path.suffix == ".safetensors" and len(path.parts) == 2
    at, file = path.parent.as_posix(), path.name
    is_model = at == str(_MODELS) and file.startswith(_SO_FAR)
    is_checkpoint = at == run_files.CHECKPOINTS and file.startswith(("round-", "pinned-"))
    return plain and (is_model or is_checkpoint)


def _copies(folder: Path) -> list[str]:
    """Return the names of the run's copies of code."""
    found = (path for path in (folder / run_files.PLUGINS).rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts)


def _content(folder: Path, name: str, length: int, offset: int = 0) -> Iterator[bytes]:
    """Yield what is sent of the first `length` bytes of a file, from an offset on: without paths of the server."""
    path = folder / name
    if name in (*_LINES, *_JSON, *_TEXT, run_files.PLUGINS_LIST):
        known = (folder / run_files.EXPERIMENT).read_text(encoding="utf-8")
        return _skipped(_public(path, name, length, known), offset)
    return _blocks(path, length, offset)


def _public(path: Path, name: str, length: int, known: str) -> Iterator[bytes]:
    if name in _LINES:
        yield from (public_json(line, known) for line in _whole_lines(path, length))
    elif name in _JSON:
        yield public_json(_first(path, length), known)
    elif name in _TEXT:
        lines = _first(path, length).decode(errors="replace").splitlines(keepends=True)
        yield from (without_paths(line, known).encode() for line in lines)
    else:
        listed = json.loads(_first(path, length))
        for each in listed:
            each |= {key: PurePosixPath(each[key]).name for key in ("source", "from_run")}
        yield json.dumps(listed, indent=2).encode() + b"\n"


def _first(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _whole_lines(path: Path, length: int) -> Iterator[bytes]:
    """Yield lines, without a torn one at the end."""
    left = length
    with path.open("rb") as file:
        while left > 0 and (line := file.readline(left)):
            left -= len(line)
            if line.endswith(b"\n"):
                yield line


def _blocks(path: Path, length: int, offset: int = 0) -> Iterator[bytes]:
    left = length - offset
    with path.open("rb") as file:
        file.seek(offset)
        while left > 0 and (block := file.read(min(CHUNK_BYTES, left))):
            left -= len(block)
            yield block


def _digest(pieces: Iterable[bytes]) -> tuple[int, str]:
    """Return number of bytes and SHA-256."""
    size, digest = 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


def _skipped(pieces: Iterable[bytes], offset: int) -> Iterator[bytes]:
    """Yield pieces from an offset on."""
    left = offset
    for piece in pieces:
        if left < len(piece):
            yield piece[left:]
        left = max(0, left - len(piece))


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield bytes in chunks of a fixed size, the last one shorter."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting[:CHUNK_BYTES])
            del waiting[:CHUNK_BYTES]
    if waiting:
        yield bytes(waiting)
