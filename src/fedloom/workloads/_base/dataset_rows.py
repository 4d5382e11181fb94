"""Rows of a PyTorch dataset, read when a minibatch needs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fedloom.core.errors import PluginInvalid
from fedloom.core.plugin_faults import is_users_file
from fedloom.workloads._base.checks import place_of
from fedloom.workloads._base.columns import converted
from fedloom.workloads._base.rows import Batch


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """Items `(x, y)`, or `(x1, x2, y)`, of a map-style dataset, collated as PyTorch's loader does."""

    dataset: Dataset[object]
    device: torch.device
    what: str
    """Owner and origin of the items, for errors."""

    def __len__(self) -> int:
        if not isinstance(self.dataset, Sized):
            kind = type(self.dataset)
            place = f"{place_of(kind)}: " if _is_users(kind) else ""
            raise PluginInvalid(
                f"{place}{self.what} are a {kind.__name__} without a length; expected a dataset with __len__ "
                "and __getitem__"
            )
        return len(self.dataset)

    @property
    def _place(self) -> str:
        """Return where items are read, for errors: file and line of a user's `__getitem__`."""
        method = inspect.getattr_static(type(self.dataset), "__getitem__", None)
        return place_of(method) if inspect.isfunction(method) and _is_users(method) else self.what

    def batch(self, rows: Tensor) -> Batch:
        items = [self._item(row) for row in rows.tolist()]
        try:
            columns = default_collate(items)
        except (RuntimeError, TypeError) as exc:
            raise PluginInvalid(f"{self._place}: {_differing(items)}") from exc
        *inputs, targets = columns
        found = tuple(converted(column, targets=False).to(self.device) for column in inputs)
        return found, converted(targets, targets=True).to(self.device)

    def _item(self, row: int) -> tuple[object, ...]:
        """Return one item, checked: PyTorch's own errors do not name the data set."""
        item = self.dataset[row]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise PluginInvalid(f"{self._place}: item {row} is a {type(item).__name__}, expected a tuple (x, y)")
        for place, value in enumerate(item):
            if not isinstance(value, Tensor | np.ndarray | np.generic | int | float):
                raise PluginInvalid(
                    f"{self._place}: entry {place} of item {row} is a {type(value).__name__}, expected a number, an "
                    "array or a tensor"
                )
        return tuple(item)


def _is_users(code: type | Callable[..., object]) -> bool:
    """Return whether a class or method is a user's."""
    try:
        return is_users_file(inspect.getsourcefile(code) or "")
    except (TypeError, OSError):  # of an interactive session or a notebook
        return code.__module__ == "__main__"


def _differing(items: Sequence[tuple[object, ...]]) -> str:
    """Return how items differ that cannot be put beside each other, in words."""
    expected = "expected items of as many entries, of one shape each: pad or crop them"
    if len({len(item) for item in items}) > 1:
        return f"items have {', '.join(sorted({str(len(item)) for item in items}))} entries; {expected}"
    for number, entries in enumerate(zip(*items, strict=True)):
        shapes = sorted({str(np.shape(entry)) for entry in entries})
        if len(shapes) > 1:
            return f"entry {number} of the items differs in shape: {', '.join(shapes)}; {expected}"
    return f"the items cannot be put beside each other; {expected}"
