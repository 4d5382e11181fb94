"""Reads pandas frames and data sets of Hugging Face as columns of numbers, without importing either."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from torch.utils.data import Dataset

from fedloom.core.errors import PluginInvalid
from fedloom.core.records import Array

if TYPE_CHECKING:
    import datasets
    import pandas as pd

_SHOWN = 12


def is_frame(value: object) -> TypeGuard[pd.DataFrame]:
    """Return whether a value is a pandas frame; False while pandas is not imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def is_series(value: object) -> TypeGuard[pd.Series]:
    """Return whether a value is a column of pandas; False while pandas is not imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Series)


def is_hub(value: object) -> TypeGuard[datasets.Dataset]:
    """Return whether a value is a data set of Hugging Face; False while its library is not imported."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(value, library.Dataset)


def split_label(columns: Sequence[object], labels: Sequence[str], what: str) -> tuple[list[str], list[str]]:
    """Return the columns of the targets, and the others.

    Args:
        columns: all of them.
        labels: names of those of the targets; none takes `label`.
        what: the data, for errors.

    Raises:
        PluginInvalid: there is no such column, or it is not said which one it is.
    """
    names = [str(name) for name in columns]
    shown = ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
    chosen = list(labels) or (["label"] if "label" in names else [])
    if not chosen:
        raise PluginInvalid(
            f"{what}: which column is the target? Its columns are {shown}. Name it: label={names[-1]!r}"
        )
    for each in chosen:
        if each not in names:
            raise PluginInvalid(f"{what}: expected a column {each!r} (label=…), found the columns {shown}")
    others = [name for name in names if name not in chosen]
    if not others:
        raise PluginInvalid(f"{what}: expected columns beside the label {', '.join(map(repr, chosen))}, found none")
    return chosen, others


def feature_matrix(frame: pd.DataFrame, names: Sequence[str], what: str) -> Array:
    """Return columns of a frame as one matrix, (n, columns), float32.

    Raises:
        PluginInvalid: a column is missing, holds no numbers, or has values missing.
    """
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise PluginInvalid(f"{what}: expected a column {missing[0]!r}, found none of that name")
    words = [name for name in names if frame[name].dtype.kind not in "biuf"]
    if words:
        raise PluginInvalid(
            f"{what}: column {words[0]!r} has dtype {frame[words[0]].dtype}, expected numbers. Drop it, or make "
            f"numbers of it: pandas.get_dummies(frame, columns={words!r})"
        )
    matrix: Array = frame[list(names)].to_numpy(dtype=np.float32)
    odd = np.flatnonzero(~np.isfinite(matrix).all(axis=0))
    if len(odd):
        count = int((~np.isfinite(matrix[:, odd[0]])).sum())
        raise PluginInvalid(
            f"{what}: column {names[odd[0]]!r} has {count} missing or infinite values, expected numbers in all rows. "
            "Fill or drop them: frame.fillna(…), frame.dropna()"
        )
    return matrix


def hub_inputs(found: datasets.Dataset, names: Sequence[str], what: str) -> tuple[Array, ...]:
    """Return columns of a data set as inputs: numbers as one matrix, arrays and images each as a separate input.

    Raises:
        PluginInvalid: a column holds neither.
    """
    arrays = [_hub_column(found, name, what) for name in names]
    if all(array.ndim == 1 for array in arrays):
        return (np.stack([array.astype(np.float32) for array in arrays], axis=1),)
    return tuple(arrays)


def hub_column(found: datasets.Dataset, name: str) -> Array:
    """Return a column's values as an array, whatever they are."""
    return np.asarray(list(found[name]))


def hub_targets(found: datasets.Dataset, labels: Sequence[str]) -> Array:
    """Return the targets: a column's values, (n,), or several columns' beside each other, (n, columns), float32."""
    if len(labels) == 1:
        return hub_column(found, labels[0])
    return np.stack([hub_column(found, each).astype(np.float32) for each in labels], axis=1)


def hub_names(found: datasets.Dataset, label: str) -> tuple[str, ...]:
    """Return the names of the classes that a data set gives its label column; none if it gives none."""
    names: object = vars(found.features[label]).get("names") or vars(found.features[label]).get("_int2str")
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def _hub_column(found: datasets.Dataset, name: str, what: str) -> Array:
    array: Array = np.asarray(found.select_columns([name]).with_format("numpy")[:][name])
    if array.dtype == object:
        raise PluginInvalid(
            f"{what}: the values of column {name!r} differ in shape or are no numbers, expected arrays of one shape. "
            "Prepare them one by one: transform=…, which takes the value and returns a tensor"
        )
    if array.dtype.kind not in "biuf":
        raise PluginInvalid(
            f"{what}: column {name!r} has dtype {array.dtype}, expected numbers, arrays or images. Drop it "
            f"(data.remove_columns({name!r})), or prepare the values: transform=…"
        )
    if type(found.features[name]).__name__ != "Image":
        return array
    pixels = array.astype(np.float32) / np.float32(255.0)
    return pixels[:, None] if pixels.ndim == 3 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


class HubItems(Dataset[object]):
    """Items `(x, y)` of a data set of Hugging Face, x prepared by a function when it is read."""

    def __init__(
        self, found: datasets.Dataset, label: str, prepare: Callable[..., object], classes: Mapping[object, int]
    ) -> None:
        self._found, self._prepare, self._label, self._classes = found, prepare, label, classes
        self._names = [name for name in found.column_names if name != label]
        targets = hub_column(found, label)
        self.targets: object = np.array([classes[each] for each in targets.tolist()]) if classes else targets

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, row: int) -> tuple[object, object]:
        item = self._found[row]
        given = item[self._names[0]] if len(self._names) == 1 else {name: item[name] for name in self._names}
        target = item[self._label]
        return self._prepare(given), self._classes[target] if self._classes else target
