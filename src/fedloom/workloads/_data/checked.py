"""Checks every source's examples after reading, and numbers their classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

import numpy as np

from fedloom.core.errors import DataMissing, FedloomError
from fedloom.core.records import Array, JsonObject
from fedloom.core.seeds import generator
from fedloom.workloads._data.labels import Numbered, is_unicode, is_visible, number_labels
from fedloom.workloads._data.raw import Labels, RawData, X
from fedloom.workloads._data.settings import Labelled

Item = TypeVar("Item")
_SPLIT_SEED = 0
"""Held-out examples are the same in every experiment, whatever its seed."""
_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples(Generic[X]):
    """A data set that has passed the check."""

    x_train: X
    """Images, (n, h, w), (n, h, w, c) or (n, c, h, w), uint8 or float; or a list of n texts."""
    y_train: Array
    """Classes from 0, shape (n,), int64."""
    x_test: X
    y_test: Array
    groups: Array | None
    """Number of the group of each training example, shape (n,), int64."""
    facts: JsonObject
    """Counts, names of the classes, omissions and remarks, for the run's provenance."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn any exception of a reader into an error that names the source.

    Raises:
        DataMissing: the source cannot be read.
    """
    try:
        yield
    except FedloomError:
        raise
    except Exception as exc:  # readers of other packages raise whatever a damaged file leads them to
        raise DataMissing(f"{where}: cannot be read: {type(exc).__name__}: {exc}") from exc


def checked(raw: RawData[X], settings: Labelled | None = None) -> Examples[X]:
    """Check what a source has read, number its classes, and hold part of it out if it has no test set.

    Args:
        raw: the content read.
        settings: of the source; may give the classes in the order of their numbers.

    Raises:
        DataMissing: lengths differ, a split is empty, a label or value is missing or of the wrong type, or classes are
            invalid.
    """
    _check_lengths(raw)
    classes = None if settings is None else settings.fixed_classes
    for which, split in (("training", raw.x_train), ("test", raw.x_test)):  # as they are numbered in the source
        if split is not None:
            _check_values(split, f"{raw.where}: {which} examples")
    numbered: Numbered = number_labels(
        raw.y_train,
        raw.y_test if raw.y_test is not None else (),
        raw.where,
        names=raw.label_names,
        classes=classes,
        fewest=1 if settings is not None and settings.classes == "union" else 2,
    )
    groups = None if raw.groups is None else number_groups(raw.groups, raw.where)
    x_train, y_train, x_test, y_test = raw.x_train, numbered.train, raw.x_test, numbered.test
    if x_test is None:
        train, test = hold_out(len(y_train), raw.test_fraction, raw.where)
        x_train, x_test = take(raw.x_train, train), take(raw.x_train, test)
        y_train, y_test = y_train[train], y_train[test]
        groups = None if groups is None else groups[train]
    remarks: list[str] = _class_remarks(raw, numbered, y_train, y_test, fixed=classes is not None)
    facts: JsonObject = {
        "name": raw.title,
        "kind": raw.kind,
        "licence": raw.licence,
        "num_train": len(y_train),
        "num_test": len(y_test),
        "num_labels": len(numbered.names),
        "label_names": list(numbered.names),
        "left_out": list(raw.left_out),
        "remarks": [*numbered.remarks, *remarks],
    }
    return Examples(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, groups=groups, facts=facts)


def hold_out(num_examples: int, fraction: float, where: str) -> tuple[Array, Array]:
    """Return rows to train on and rows to test on: a fixed random split, each in rising order.

    Raises:
        DataMissing: there are too few examples to make two sets of.
    """
    num_test = round(num_examples * fraction)
    if not 0 < num_test < num_examples:
        raise DataMissing(
            f"{where}: {num_examples} examples cannot be split with test_fraction = {fraction:g}: one side is empty"
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


def number_groups(values: Labels, where: str) -> Array:
    """Return group values as numbers from 0, in sorted order of their text.

    Raises:
        DataMissing: an example has none.
    """
    found = values.tolist() if isinstance(values, np.ndarray) else list(values)
    for index, value in enumerate(found):
        if isinstance(value, list | tuple | dict):
            raise DataMissing(f"{where}: training example {index} has the group {value!r}, expected a number or text")
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            raise DataMissing(f"{where}: training example {index} has no group ({value!r}). Remove it, or give it one")
    _, numbers = np.unique(np.array([str(value) for value in found]), return_inverse=True)
    return numbers.astype(np.int64)


def _check_lengths(raw: RawData[X]) -> None:
    if (raw.x_test is None) != (raw.y_test is None):
        lacking = "labels" if raw.y_test is None else "examples"
        raise DataMissing(f"{raw.where}: the test set has no {lacking}. Give both, or neither")
    counts = [("training", len(raw.x_train), "labels", len(raw.y_train))]
    if raw.groups is not None:
        counts.append(("training", len(raw.x_train), "groups", len(raw.groups)))
    if raw.x_test is not None and raw.y_test is not None:
        counts.append(("test", len(raw.x_test), "labels", len(raw.y_test)))
    for which, examples, what, found in counts:
        if examples != found:
            raise DataMissing(
                f"{raw.where}: {examples:,} {which} examples, but {found:,} {what}; expected one for each"
            )
        if not examples:
            raise DataMissing(f"{raw.where}: no {which} examples")


def _check_values(split: Array | list[str], where: str) -> None:
    if isinstance(split, list):
        for index, text in enumerate(split):
            if not is_visible(text):
                raise DataMissing(f"{where}: the text of example {index} is empty. Remove it, or fill it in")
            if not is_unicode(text):
                raise DataMissing(
                    f"{where}: the text of example {index} has half a surrogate pair, which is no Unicode. Correct it"
                )
    elif split.dtype.kind == "f":
        for index, image in enumerate(split):
            if not np.isfinite(image).all():
                raise DataMissing(f"{where}: image {index} has values that are NaN or infinite. Replace them")
    elif split.size == 0:
        raise DataMissing(f"{where}: images of shape {split.shape} have no pixels")


def _class_remarks(raw: RawData[X], numbered: Numbered, y_train: Array, y_test: Array, *, fixed: bool) -> list[str]:
    """Return the classes that a split lacks, in words.

    Raises:
        DataMissing: a test set of the source's own has classes that nothing is trained on.
    """
    present = [set(np.unique(side).tolist()) for side in (y_train, y_test)]
    lacking = [
        [name for number, name in enumerate(numbered.names) if number in here and number not in there]
        for here, there in ((present[1], present[0]), (present[0], present[1]))
    ]
    if lacking[0] and raw.x_test is not None and not fixed:
        raise DataMissing(
            f"{raw.where}: the test set has the classes {_listed(lacking[0])}, which no training example has. Remove "
            "them, add training examples, or set workload.data.classes to all classes"
        )
    nowhere = [name for number, name in enumerate(numbered.names) if number not in present[0] | present[1]]
    found = [("no training example", lacking[0]), ("no test example", lacking[1]), ("no example at all", nowhere)]
    return [f"{what}: classes {_listed(names)}" for what, names in found if names]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
