"""Converts the result of a workload's `dataset` to rows: arrays, tensors, PyTorch datasets, for all clients or each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from fedloom.core.errors import ConfigError, PluginInvalid
from fedloom.core.records import Array, Info
from fedloom.core.seeds import generator
from fedloom.workloads._base.classes import classes_of, digest_of_rows
from fedloom.workloads._base.client_rows import ClientRows, SomeRows
from fedloom.workloads._base.columns import as_column
from fedloom.workloads._base.dataset_rows import DatasetRows
from fedloom.workloads._base.rows import RowData, RowSource, TensorRows
from fedloom.workloads._data.partition import Partition

Table: TypeAlias = "tuple[Array | Tensor, ...]"
"""Inputs and targets, (n, …) each: `(x, y)`, or `(x1, x2, y)` for a model with two arguments."""
Source: TypeAlias = "Table | Dataset[object]"
"""Examples: a table, or a PyTorch dataset whose items are `(x, y)`."""
Clients: TypeAlias = "Sequence[Source] | Callable[[int], Source]"
"""Examples of each client: a list of them, or a function of the client's number, which is called on the client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """A training set, with its labels, partition and description."""

    train: Source | list[Source] | Callable[[int], Source]
    """All examples, which `workload.partition` splits among the clients; or a list with those of each client; or a
    function from a client's number to its examples."""
    test: Source | None = None
    """Examples for evaluating the global model."""
    test_fraction: float = 0.2
    """Fraction of the examples (of each client's, in a list) that is held out if there is no `test`, drawn by the
    seed; 0 holds out none. Not for a function for each client."""
    groups: Sequence[int] = ()
    """Number of the group (a hospital, a writer) of each example, for the partition `natural`."""
    label_names: Sequence[str] = ()
    """Names of the classes; by default their numbers."""
    title: str = ""
    """Name of the data, for reports; by default the workload's class."""
    kind: Literal["real", "rendered", "synthetic"] = "real"
    """Description of the examples."""
    licence: str | None = None
    """Licence of the data."""


Found: TypeAlias = "RowData | Examples | Source | list[Source] | Callable[[int], Source]"
"""Result types of `dataset`."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes rows of the result of a user's `dataset`."""

    device: torch.device
    clients: int
    seed: int
    title: str
    """Default name of the data."""
    where: str
    """File and line of the method, for errors."""

    def rows(self, found: Found) -> RowData:
        """Return the rows.

        Raises:
            PluginInvalid: its type is not allowed for `dataset`; the message says what was found.
            ConfigError: the number of clients differs from the experiment's.
        """
        if isinstance(found, RowData):
            return found
        given = found if isinstance(found, Examples) else Examples(train=found)
        if not 0.0 <= given.test_fraction < 1.0:
            raise PluginInvalid(f"{self.where}: expected a test_fraction from 0 to below 1, got {given.test_fraction}")
        test = None if given.test is None else self._source(given.test, "the test examples")
        if isinstance(given.train, list):
            return self._listed(given, given.train, test)
        if isinstance(given.train, Dataset | tuple) or not callable(given.train):
            return self._whole(given, self._source(given.train, "the examples"), test)
        return self._apart(given, given.train, test)

    def _whole(self, given: Examples, source: RowSource, test: RowSource | None) -> RowData:
        """Return one set for all clients."""
        train, kept, held = self._held_out(given, [source], source, test)
        groups = np.asarray(given.groups, np.int64)
        if len(groups) not in (0, len(source)):
            raise PluginInvalid(
                f"{self.where}: groups has {len(groups)} entries, expected one for each of {len(source)} examples"
            )
        return self._data(given, train, held, None, groups[kept] if len(groups) else None)

    def _listed(self, given: Examples, sources: Sequence[Source], test: RowSource | None) -> RowData:
        """Return a set for each client, all of them on this machine."""
        if len(sources) != self.clients:
            raise ConfigError(
                f"clients: the experiment has {self.clients}, but dataset() lists examples of {len(sources)} "
                f"({self.where}). Set clients = {len(sources)}"
            )
        made = [self._source(each, f"the examples of client {client}") for client, each in enumerate(sources)]
        train, kept, held = self._held_out(given, made, self._joined(made), test)
        edges = np.searchsorted(kept, np.cumsum([0, *map(len, made)]))
        shards = Partition(np.arange(len(kept)), edges.astype(np.int64))
        return self._data(given, train, held, shards, None)

    def _apart(self, given: Examples, load: Callable[[int], Source], test: RowSource | None) -> RowData:
        """Return a set for each client, loaded on demand."""
        rows = ClientRows(lambda client: self._source(load(client), f"the examples of client {client}"))
        info = {**self._info(given, None), "num_test": 0 if test is None else len(test)}
        return RowData(train=rows, test=test, info=info, sha256="", label_names=tuple(given.label_names), shards=rows)

    def _held_out(
        self, given: Examples, parts: Sequence[RowSource], joined: RowSource, test: RowSource | None
    ) -> tuple[RowSource, Array, RowSource | None]:
        """Return the training rows, their indices, and the held-out rows."""
        total = len(joined)
        if test is not None or not given.test_fraction:
            return joined, np.arange(total), test
        chosen, start = np.zeros(total, bool), 0
        for number, part in enumerate(parts):
            order = generator(self.seed, "dataset", "held_out", number).permutation(len(part))
            chosen[start + order[: min(round(given.test_fraction * len(part)), len(part) - 1)]] = True
            start += len(part)
        kept, held = np.flatnonzero(~chosen), np.flatnonzero(chosen)
        return self._some(joined, kept), kept, self._some(joined, held) if len(held) else None

    def _some(self, source: RowSource, rows: Array) -> RowSource:
        index = torch.from_numpy(rows).to(self.device)
        if isinstance(source, TensorRows):
            inputs, targets = source.batch(index)
            return TensorRows(inputs, targets)
        return SomeRows(source, index)

    def _data(
        self, given: Examples, train: RowSource, test: RowSource | None, shards: Partition | None, groups: Array | None
    ) -> RowData:
        """Return the rows, with facts about them."""
        labels = classes_of(train)
        count = max(int(labels.max()) + 1, len(given.label_names)) if len(labels) else 0
        names = tuple(given.label_names) or tuple(map(str, range(count)))
        if count > len(names):
            raise PluginInvalid(
                f"{self.where}: label_names has {len(names)} names, but the labels go up to {count - 1}; expected "
                f"{count} names"
            )
        sha256 = digest_of_rows(train)
        info = {**self._info(given, sha256), "num_train": len(train), "num_test": 0 if test is None else len(test)}
        if test is not None and given.test is None:
            info["held_out"] = f"{given.test_fraction:g} of the examples, drawn by the seed"
        return RowData(
            train=train,
            test=test,
            info=info,
            sha256=sha256,
            labels=labels,
            num_labels=count,
            label_names=names,
            groups=groups,
            shards=shards,
        )

    def _info(self, given: Examples, sha256: str | None) -> Info:
        return {"name": given.title or self.title, "kind": given.kind, "licence": given.licence, "sha256": sha256}

    def _source(self, found: Source, what: str) -> RowSource:
        """Return examples as rows; they are not empty."""
        made: RowSource
        if isinstance(found, tuple):
            last = len(found) - 1
            columns = [
                as_column(each, f"entry {place} of {what}", self.where, targets=place == last)
                for place, each in enumerate(found)
            ]
            self._check_columns(columns, what)
            moved = [each.to(self.device) for each in columns]
            made = TensorRows(tuple(moved[:-1]), moved[-1])
        elif isinstance(found, Dataset):
            made = DatasetRows(found, self.device, f"{self.where}: {what}")
        else:
            raise PluginInvalid(
                f"{self.where}: {what} are a {type(found).__name__}, expected a tuple (x, y) of arrays or tensors, or "
                "a torch.utils.data.Dataset of (x, y)"
            )
        if not len(made):
            raise PluginInvalid(f"{self.where}: {what} have length 0, expected at least one example")
        return made

    def _check_columns(self, columns: Sequence[Tensor], what: str) -> None:
        lengths = [len(each) for each in columns]
        if len(columns) < 2:
            raise PluginInvalid(
                f"{self.where}: {what} are a tuple of {len(columns)}, expected inputs and targets (x, y)"
            )
        if len(set(lengths)) > 1:
            shapes = ", ".join(str(tuple(each.shape)) for each in columns)
            raise PluginInvalid(
                f"{self.where}: {what} have shapes {shapes}; expected as many inputs as targets, found {lengths}"
            )

    def _joined(self, parts: Sequence[RowSource]) -> RowSource:
        tables = [part for part in parts if isinstance(part, TensorRows)]
        if len(tables) == len(parts):
            columns = zip(*[(*each.inputs, each.targets) for each in tables], strict=True)
            *inputs, targets = [torch.cat(column) for column in columns]
            return TensorRows(tuple(inputs), targets)
        sets = [part for part in parts if isinstance(part, DatasetRows)]
        if len(sets) != len(parts):
            raise PluginInvalid(f"{self.where}: some clients have tables and some datasets; expected one kind for all")
        joined: Dataset[object] = ConcatDataset([each.dataset for each in sets])
        return DatasetRows(joined, self.device, sets[0].what)
