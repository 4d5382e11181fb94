"""Converts users' values to tensors for a model; an error names what is wrong with them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedloom.core.errors import PluginInvalid
from fedloom.core.records import Array
from fedloom.workloads._torch.arrays import as_tensor

_WHOLE = (torch.int32, torch.int64)
_SMALL = (torch.uint8, torch.int8, torch.int16, torch.bool)
_NATIVE = "biuf"
"""Kinds of NumPy's dtypes that become tensors."""


def as_column(value: object, what: str, where: str, *, targets: bool) -> Tensor:
    """Return one entry of a table, its inputs or its targets, as a tensor; see `converted`.

    Raises:
        PluginInvalid: it is neither array nor tensor, or holds no numbers.
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif isinstance(value, np.ndarray):
        tensor = _of_array(value, what, where)
    else:
        hint = "" if value is None else f"; write np.asarray(…) or {type(value).__name__}.to_numpy() around it"
        raise PluginInvalid(
            f"{where}: {what} is a {type(value).__name__}, expected a NumPy array or a torch.Tensor{hint}"
        )
    if not tensor.dim():
        raise PluginInvalid(f"{where}: {what} is a single number, expected one entry for each example")
    return converted(tensor, targets=targets)


def converted(tensor: Tensor, *, targets: bool) -> Tensor:
    """Return floats as float32, bytes and truth values of inputs too, and other whole numbers as int64."""
    if tensor.dtype in (torch.float16, torch.float64) or (tensor.dtype in _SMALL and not targets):
        return tensor.float()
    return tensor.long() if tensor.dtype in (*_WHOLE, *_SMALL) else tensor


def _of_array(array: Array, what: str, where: str) -> Tensor:
    if array.dtype.kind not in _NATIVE:
        hint = "numbers: write x.astype(np.float32), or number classes with np.unique(y, return_inverse=True)[1]"
        raise PluginInvalid(f"{where}: {what} is an array of dtype {array.dtype}, expected {hint}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return as_tensor(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))
