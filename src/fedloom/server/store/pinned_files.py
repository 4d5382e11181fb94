"""Pinned records next to a run's checkpoints: each in a file named by its digest, written once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from fedloom.core import frames
from fedloom.core.errors import BadFrame
from fedloom.core.pinned import Pinned
from fedloom.server.store.files import write_frame

_PREFIX = "pinned-"


class PinnedFiles:
    """A folder's pinned records.

    Args:
        folder: the files' folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, records: Mapping[str, Pinned]) -> None:
        """Write the records that are not there yet."""
        for sha256, record in records.items():
            if not self._path(sha256).exists():
                write_frame(self._path(sha256), record)

    def load(self, digests: Iterable[str]) -> dict[str, Pinned]:
        """Read records back.

        Raises:
            BadFrame: a file is missing or damaged.
        """
        return {sha256: self._read(sha256) for sha256 in digests}

    def prune(self, wanted: Collection[str]) -> None:
        """Remove the records that no checkpoint names."""
        for path in self._folder.glob(f"{_PREFIX}*.safetensors"):
            if path.stem.removeprefix(_PREFIX) not in wanted:
                path.unlink(missing_ok=True)

    @property
    def any(self) -> bool:
        """Return whether the folder has any records."""
        return next(self._folder.glob(f"{_PREFIX}*.safetensors"), None) is not None

    def _read(self, sha256: str) -> Pinned:
        path = self._path(sha256)
        if not path.exists():
            raise BadFrame(f"it needs {path.name}, which is missing")
        record = frames.decode(path.read_bytes())
        found = frames.digest(record)
        if found != sha256:
            raise BadFrame(f"it needs {path.name}, whose content has digest {found[:16]}…: the file was damaged")
        return Pinned(record.groups, record.info, sha256)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{_PREFIX}{sha256}.safetensors"
