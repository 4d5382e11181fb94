"""Leaves batch normalisation's running statistics unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Use batch statistics in batch normalisation as the mode says, without updating the running ones."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    before = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0  # running = 1 * running + 0 * batch, exactly
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
