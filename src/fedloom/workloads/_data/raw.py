"""Examples as a source reads them, before they are normalised or tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar, overload

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.workloads._data.settings import Layout, LocalData

Item = TypeVar("Item")
X = TypeVar("X", Array, list[str])
Label: TypeAlias = str | int
"""A class as a source names it."""
_SPLIT_SEED = 0
"""Held-out examples are the same in every experiment, whatever its seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawData(Generic[X]):
    """A data set in memory: a training and a test set, and what is known about them."""

    x_train: X
    """Images, (n, h, w), (n, h, w, c) or (n, c, h, w), uint8 or float; or a list of n texts."""
    y_train: Array
    """Classes from 0, shape (n,), int64."""
    x_test: X
    y_test: Array
    groups: Array | None = None
    """Number of the group of each training example (for the `natural` partition), shape (n,), int64."""
    label_names: tuple[str, ...] = ()
    title: str
    kind: str
    licence: str | None = None
    layout: Layout | None = None
    """Order of the axes of images in four dimensions; None infers it from their sizes."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Images by the rule their values were scaled by; empty for texts."""


def hold_out(num_examples: int, fraction: float) -> tuple[Array, Array]:
    """Rows to train on and rows to test on: a fixed random split, each in rising order.

    Raises:
        DataMissing: there are too few examples to make two sets of.
    """
    num_test = round(num_examples * fraction)
    if not 0 < num_test < num_examples:
        raise DataMissing(
            f"{num_examples} examples cannot be split with test_fraction = {fraction:g}: one side is empty"
        )
    order = generator(_SPLIT_SEED, "data", "held out").permutation(num_examples)
    return np.sort(order[num_test:]), np.sort(order[:num_test])


@overload
def take(values: list[Item], rows: Array) -> list[Item]: ...
@overload
def take(values: Array, rows: Array) -> Array: ...
def take(values: list[Item] | Array, rows: Array) -> list[Item] | Array:
    """Return the given rows of an array or of a list."""
    return [values[row] for row in rows.tolist()] if isinstance(values, list) else values[rows]


def number_labels(train: Sequence[Label], test: Sequence[Label], where: str) -> tuple[Array, Array, tuple[str, ...]]:
    """Classes as numbers from 0, in sorted order of their values, and their names.

    Raises:
        DataMissing: labels are neither all integers nor all strings.
    """
    values = {*train, *test}
    if not values or not (all(type(v) is str for v in values) or all(isinstance(v, int | np.integer) for v in values)):
        shown = ", ".join(repr(value) for value in list(values)[:3])
        raise DataMissing(f"{where}: labels must be all integers or all strings, found {shown or 'none'}")
    ordered = sorted(values)
    number = {value: index for index, value in enumerate(ordered)}
    as_numbers = [np.array([number[value] for value in side], np.int64) for side in (train, test)]
    return as_numbers[0], as_numbers[1], tuple(str(value) for value in ordered)


def number_groups(values: Sequence[object]) -> Array:
    """Group values as numbers from 0, in sorted order of their text."""
    _, numbers = np.unique(np.array([str(value) for value in values]), return_inverse=True)
    return numbers.astype(np.int64)


def title_of(settings: LocalData, path: str) -> str:
    """What to call a user's own data."""
    return settings.title or Path(path).name


def existing(path: str, what: str, remedy: str) -> Path:
    """The path, if there is something.

    Raises:
        DataMissing: nothing there; the message ends with the remedy.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DataMissing(f"{what}: nothing at {str(found)!r} (looked from {Path.cwd()}). {remedy}")
    return found


def files_below(root: Path, suffixes: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """Every file below a folder (or the file itself) as (relative name, path), in sorted order."""
    if root.is_file():
        return [(root.name, root)]
    wanted = tuple(suffixes)
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name[0] != ".")
    return [(str(path.relative_to(root)), path) for path in found if not wanted or path.suffix.lower() in wanted]
