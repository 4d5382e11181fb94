"""Converts data of a Python program to `Examples`: arrays, frames, data sets, pairs and lists of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fedloom.core.errors import PluginInvalid
from fedloom.core.records import Array, Info
from fedloom.core.text import shown
from fedloom.workloads._base.classes import HasTargets
from fedloom.workloads._base.examples import Examples, Source
from fedloom.workloads.torch.frames import (
    HubItems,
    feature_matrix,
    hub_column,
    hub_inputs,
    hub_names,
    hub_targets,
    is_frame,
    is_hub,
    is_series,
    split_label,
)
from fedloom.workloads.torch.standard import Moments, standardised
from fedloom.workloads.torch.types import Data, Transform

_EXPECTED = (
    "expected (x, y) of arrays or tensors, a torch.utils.data.Dataset, a pandas frame or a data set of Hugging Face "
    "with label=…, a pair (train, test) of these, or a list with one for each client"
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read."""

    labels: tuple[str, ...] = ()
    """Columns of the targets, in a frame or a data set of Hugging Face; none takes `label`."""
    columns: tuple[str, ...] = ()
    """Columns of the inputs; none given takes all others."""
    transform: Transform | None = None
    """Prepares an example's input."""
    test_fraction: float = 0.2
    """Fraction held out where there is no test set."""
    title: str = "data"
    """Name of the data for reports."""


@dataclass(frozen=True, kw_only=True)
class ReadData:
    """Data as examples, and facts found in it."""

    examples: Examples
    columns: tuple[str, ...] = ()
    """Columns of the inputs, if they were a table's."""
    moments: Moments | None = None
    """What the inputs are standardised with."""
    facts: Info = field(default_factory=dict)
    """Facts about the data for its description."""


def read_data(data: Data, test: Data | None, how: Reading) -> ReadData:
    """Return data as examples.

    Args:
        data: what a program gave as `data`.
        test: what it gave as `test`; None takes the second of a pair.
        how: columns and preparation.

    Raises:
        PluginInvalid: it is no data; the message says what was found.
    """
    train, held = _parts(data, test)
    if not isinstance(train, Dataset) and callable(train) and not is_hub(train):
        return ReadData(examples=_per_client(train, held, how))
    listed = list(train) if isinstance(train, list) else None
    if listed is not None and not listed:
        raise PluginInvalid(f"data: found an empty list; {_EXPECTED}")
    sources = [train] if listed is None else listed
    named = {"data" if listed is None else f"data[{number}]": each for number, each in enumerate(sources)}
    if held is not None:
        named["test"] = held
    reader = _Reader(how, named)
    made = [reader.source(each, what) for what, each in named.items()]
    examples = Examples(
        train=made[: len(sources)] if listed is not None else made[0],
        test=made[-1] if held is not None else None,
        test_fraction=how.test_fraction,
        label_names=reader.names,
        title=how.title,
    )
    return ReadData(examples=examples, columns=reader.columns)


def _per_client(load: Callable[[int], object], test: object, how: Reading) -> Examples:
    """Return examples that each client loads by a function of its number."""
    held = None if test is None else _Reader(how, {"test": test}).source(test, "test")
    return Examples(train=_Loaded(load, how), test=held, title=how.title)


@dataclass(frozen=True)
class _Loaded:
    """A client's examples by its number."""

    load: Callable[[int], object]
    how: Reading

    def __call__(self, client: int) -> Source:
        found, what = self.load(client), f"the data of client {client}"
        reader = _Reader(self.how, {what: found})
        if reader.names:
            raise PluginInvalid(
                f"{what}: its labels are words, which each client would number by itself; expected numbers, the same "
                "for all clients"
            )
        return reader.source(found, what)


def _parts(data: Data, test: Data | None) -> tuple[object, object]:
    """Return the training and the test data; the latter None without any."""
    if data is None:
        raise PluginInvalid(f"data: found None; {_EXPECTED}")
    if isinstance(data, Mapping):
        if "train" not in data:
            raise PluginInvalid(f"data: found a {type(data).__name__} with {list(data)}; {_EXPECTED}")
        return data["train"], data.get("test") if test is None else test
    if isinstance(data, tuple) and len(data) == 2 and test is None and all(map(_is_whole, data)):
        return data
    return data, test


def _is_whole(value: object) -> bool:
    """Return whether a value is examples with their targets, rather than one column of a table."""
    return isinstance(value, Dataset | tuple) or is_frame(value) or is_hub(value)


class _Reader:
    """Reads several sources alike: with the same columns, and the same numbers for the same classes."""

    def __init__(self, how: Reading, sources: Mapping[str, object]) -> None:
        self._how = how
        self.columns: tuple[str, ...] = how.columns
        self.names: tuple[str, ...] = ()
        words = set[object]()
        for what, each in sources.items():
            for value in self._labels(each, what):
                words.add(value)
        self._classes = {word: number for number, word in enumerate(sorted(words, key=str))}
        if self._classes:
            self.names = tuple(map(str, self._classes))

    def source(self, value: object, what: str) -> Source:
        """Return one source as rows.

        Raises:
            PluginInvalid: it is none.
        """
        if is_frame(value):
            return self._prepared(self._frame(value, what))
        if is_hub(value):
            return self._hub(value, what)
        if isinstance(value, TensorDataset):
            return self._prepared(tuple(value.tensors))
        if isinstance(value, Dataset):
            return value if self._how.transform is None else Prepared(value, self._how.transform)
        if isinstance(value, tuple):
            return self._prepared(self._table(value, what))
        raise PluginInvalid(f"{what}: found a {type(value).__name__}; {_EXPECTED}")

    def _labels(self, value: object, what: str) -> Iterable[object]:
        """Return the labels of a source that are words; none if they are numbers."""
        column: Array | None = None
        if is_frame(value):
            labels, _ = split_label(value.columns, self._how.labels, what)
            column = value[labels[0]].to_numpy() if len(labels) == 1 else None
        elif is_hub(value):
            labels, _ = split_label(value.column_names, self._how.labels, what)
            column = hub_column(value, labels[0]) if len(labels) == 1 else None
        elif isinstance(value, tuple) and value and isinstance(value[-1], np.ndarray):
            column = value[-1]
        elif isinstance(value, tuple) and value and is_series(value[-1]):
            column = value[-1].to_numpy()
        if column is None or column.dtype.kind in "biufc" or column.ndim != 1:
            return ()
        odd = [each for each in column.tolist() if not isinstance(each, str)]
        if odd:
            raise PluginInvalid(f"{what}: a label is {odd[0]!r}, expected all of them to be numbers, or all text")
        return tuple(column.tolist())

    def _coded(self, column: object) -> object:
        """Return labels as numbers of classes where they are words."""
        array = column if isinstance(column, np.ndarray) else None
        if array is None or array.dtype.kind in "biufc" or array.ndim != 1 or not self._classes:
            return column
        return np.array([self._classes[each] for each in array.tolist()], np.int64)

    def _frame(self, value: object, what: str) -> tuple[object, ...]:
        if not is_frame(value):
            raise TypeError(f"{what} is no frame")
        labels, others = split_label(value.columns, self._how.labels, what)
        self.columns = self.columns or tuple(others)
        several = len(labels) > 1
        targets = feature_matrix(value, labels, what) if several else self._coded(value[labels[0]].to_numpy())
        return feature_matrix(value, self.columns, what), targets

    def _table(self, value: tuple[object, ...], what: str) -> tuple[object, ...]:
        if len(value) < 2:
            raise PluginInvalid(f"{what}: found a tuple of {len(value)}; {_EXPECTED}")
        *inputs, targets = value
        columns = (*(self._input(each, what) for each in inputs), self._coded(_plain(targets)))
        for number, each in enumerate(columns):
            check_finite(each, f"{what}: entry {number}")
        return columns

    def _input(self, value: object, what: str) -> object:
        if not is_frame(value):
            return _plain(value)
        self.columns = self.columns or tuple(map(str, value.columns))
        return feature_matrix(value, self.columns, what)

    def _hub(self, value: object, what: str) -> Source:
        if not is_hub(value):
            raise TypeError(f"{what} is no data set of Hugging Face")
        labels, others = split_label(value.column_names, self._how.labels, what)
        if len(labels) == 1:
            self.names = self.names or hub_names(value, labels[0])
        if self._how.transform is not None:
            if len(labels) > 1:
                raise PluginInvalid(f"{what}: transform=… takes one label column, found {', '.join(labels)}")
            return HubItems(value, labels[0], self._how.transform, self._classes)
        return _as_table((*hub_inputs(value, self.columns or others, what), self._coded(hub_targets(value, labels))))

    def _prepared(self, table: tuple[object, ...]) -> Source:
        columns = _as_table(table)
        return columns if self._how.transform is None else Prepared(TableItems(columns), self._how.transform)


def _as_table(columns: tuple[object, ...]) -> Source:
    """Return columns as a table; whether they are arrays is checked where they become rows."""
    return tuple(columns)  # type: ignore[arg-type]


def _plain(value: object) -> object:
    """Return a column of pandas, or a list of numbers, as an array; anything else as it is."""
    if is_series(value):
        return value.to_numpy()
    return np.asarray(value) if isinstance(value, list) else value


class TableItems(Dataset[object]):
    """Rows of a table as items."""

    def __init__(self, columns: Source) -> None:
        if not isinstance(columns, tuple):
            raise TypeError("expected a table")
        self._columns = columns
        self.targets: object = columns[-1]

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, row: int) -> tuple[object, ...]:
        return tuple(each[row] for each in self._columns)


class Prepared(Dataset[object]):
    """Items whose first input is prepared by a function when they are read."""

    def __init__(self, items: Dataset[object], transform: Transform) -> None:
        self._items, self._transform = items, transform
        if isinstance(items, HasTargets):
            self.targets: object = items.targets

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # a data set without a length is refused by its reader

    def __getitem__(self, row: int) -> tuple[object, ...]:
        item = self._items[row]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise PluginInvalid(f"data: item {row} is a {type(item).__name__}, expected a tuple (x, y)")
        first, *others = item
        return (_numbers(self._transform(first)), *others)


def check_finite(column: object, what: str) -> None:
    """Reject numbers that are missing or infinite.

    Raises:
        PluginInvalid: there are some; the message says how many, and in which example the first one is.
    """
    values = column.detach().cpu().numpy() if isinstance(column, Tensor) and column.is_floating_point() else column
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or not values.ndim or np.isfinite(values).all():
        return
    odd = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    raise PluginInvalid(
        f"{what} has missing or infinite values in {len(odd)} of {len(values)} examples, first in example {odd[0]}; "
        "expected numbers. Fill them (np.nan_to_num), or leave the examples out"
    )


def _numbers(value: object) -> object:
    """Return a prepared input as a tensor with floats of 32 bits.

    Raises:
        PluginInvalid: it holds no numbers.
    """
    array = None if isinstance(value, Tensor) else np.asarray(value)
    if array is not None and array.dtype.kind not in "biuf":
        raise PluginInvalid(f"transform: returned {shown(value)}, expected an array or a tensor of numbers")
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(array)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def model_inputs(
    value: object, columns: tuple[str, ...], transform: Transform | None, moments: Moments | None = None
) -> object:
    """Return inputs without targets as the model takes them: the columns of a frame, each example prepared.

    Args:
        value: arrays, tensors, a tuple of them, or a frame.
        columns: of the inputs, if the examples were a table's.
        transform: prepares the first input of each example.
        moments: what it is standardised with.
    """
    if is_frame(value):
        value = feature_matrix(value, columns or tuple(map(str, value.columns)), "predict")
    given = value if isinstance(value, tuple) else (value,)
    first, *others = map(_plain, given)
    if transform is not None and isinstance(first, np.ndarray | Tensor):
        made = [torch.as_tensor(np.asarray(_numbers(transform(each)))) for each in first]
        first = torch.stack(made)
    return (first if moments is None else standardised(first, moments, "predict"), *others)
