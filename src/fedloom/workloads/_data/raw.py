"""Examples as a source reads them, before they are normalised or tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.settings import Layout, LocalData

X = TypeVar("X", Array, list[str])
Label: TypeAlias = str | int
"""A source's name of a class."""
Labels: TypeAlias = Array | Sequence[object]
"""A source's labels of a split: checked and numbered afterwards."""
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that macOS archives, network storage and file systems add to the user's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawData(Generic[X]):
    """A source's data set in memory, before the checks of `checked`."""

    x_train: X
    """Images, (n, h, w), (n, h, w, c) or (n, c, h, w), uint8 or float; or a list of n texts."""
    y_train: Labels
    """Label of each training example; its class's number where there are `label_names`."""
    x_test: X | None = None
    """The test set; None if part of the one set is to be held out."""
    y_test: Labels | None = None
    test_fraction: float = 0.2
    """Fraction held out if there is no test set."""
    groups: Labels | None = None
    """Value of the group column of each training example, for the `natural` partition."""
    label_names: tuple[str, ...] = ()
    """The classes, in the order of their numbers; empty if labels are to be numbered."""
    where: str
    """The path it was read from, for messages."""
    title: str
    kind: str
    licence: str | None = None
    layout: Layout | None = None
    """Order of the axes of images in four dimensions; None infers it from their sizes."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Number of images by scaling rule; empty for texts."""
    left_out: tuple[str, ...] = ()
    """Content that was not read, in words."""


def title_of(settings: LocalData, path: str) -> str:
    """Return the name of a user's own data."""
    return settings.title or Path(path).name.encode("utf-8", "backslashreplace").decode()


def existing(path: str, what: str, remedy: str) -> Path:
    """Return the path if it exists.

    Raises:
        DataMissing: it does not exist; the message ends with the remedy.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DataMissing(f"{what}: nothing at {str(found)!r} (looked from {Path.cwd()}). {remedy}")
    return found


def files_below(root: Path, suffixes: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """Return every file below a folder (or the file itself) as (relative name, path), sorted; no hidden ones."""
    if root.is_file():
        return [(root.name, root)]
    wanted = tuple(suffixes)
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and not is_hidden(path.relative_to(root)))
    return [(str(path.relative_to(root)), path) for path in found if not wanted or path.suffix.lower() in wanted]


def is_hidden(path: Path) -> bool:
    """Return whether a part of a relative path is hidden, or added by a system to the user's files."""
    return any(part.startswith(".") or part in _OF_SYSTEMS for part in path.parts)
