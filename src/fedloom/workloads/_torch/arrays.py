"""Tensors as NumPy arrays and back, sharing memory; bfloat16 included."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_array(tensor: Tensor) -> Array:
    """Return a CPU tensor's memory as an array of the same dtype; no copy."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_BFLOAT16)
    array: Array = tensor.numpy()
    return array


def as_tensor(array: Array) -> Tensor:
    """Return an array's memory as a CPU tensor of the same dtype; no copy.

    Torch has no read-only tensors: the tensor of a read-only array must not be written to.
    """
    if array.dtype == _BFLOAT16:
        return as_tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else _shown_writable(array))


def _shown_writable(array: Array) -> Array:
    """Return a view of a read-only array that appears writable; it keeps the array alive."""
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=array))
