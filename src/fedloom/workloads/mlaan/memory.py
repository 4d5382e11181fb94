"""Measures the memory of activations: the bytes of tensors that autograd saves for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Saved:
    """One saved tensor; the meter is notified when it is released."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class ActivationMeter:
    """Counts bytes of the storages that saved tensors refer to, each storage once, parameters excluded.

    Args:
        parameters: tensors that are no activations: a model's parameters and buffers.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._excluded = {each.untyped_storage().data_ptr() for each in parameters}
        self._live: dict[int, int] = {}
        """Saved tensors by storage."""
        self._bytes = 0
        self.peak = 0
        """The largest sum so far; bytes."""

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count tensors saved in this scope. They are released as without the meter."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
            yield

    def _pack(self, tensor: Tensor) -> _Saved:
        storage, saved = tensor.untyped_storage(), _Saved(tensor)
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._excluded and size:
            self._bytes += 0 if self._live.get(key) else size
            self._live[key] = self._live.get(key, 0) + 1
            self.peak = max(self.peak, self._bytes)
            weakref.finalize(saved, self._release, key, size).atexit = False
        return saved

    def _release(self, key: int, size: int) -> None:
        self._live[key] -= 1
        if not self._live[key]:
            del self._live[key]
            self._bytes -= size


def _unpack(saved: _Saved) -> Tensor:
    return saved.tensor
