"""Batch normalisation's statistics for weights that no training has passed through: a combination of snapshots.

One pass over clean training images in training mode; t counts batches from 1 to n. Two rules:

- `cumulative`: running <- running + (batch - running) / t, the plain mean over batches (as SWA does).
- `released`: what the code released with MEAT does. The running values begin at mean 0 and variance 1 and move with the
  layer's own momentum (a layer without one takes the plain mean of its batches so far); the statistics are the
  coordinate-wise median over t of the running values. After t batches the beginning still weighs (1 - momentum)^t, so
  with few batches the result is far off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedloom.core.errors import ConfigError
from fedloom.workloads._torch.arrays import as_array

Rule = Literal["cumulative", "released"]
LEAST_BATCHES = 132
"""Batches the released rule needs at the networks' momentum of 0.1: the median sits near t = n / 2, where 0.9^(n / 2)
must be below 1e-3."""
_BUFFERS = ("running_mean", "running_var")


def check_batches(rule: Rule | None, batches: int) -> None:
    """Reject the released rule if it would break the model.

    Raises:
        ConfigError: there are too few batches for it.
    """
    if rule == "released" and batches < LEAST_BATCHES:
        raise ConfigError(
            f'strategy.batch_norm: "released" needs at least {LEAST_BATCHES} batches of a client\'s training images, '
            f"here are {batches}: the starting values 0 and 1 would weigh {0.9 ** (batches / 2):.1%}. Lower "
            'workload.training.batch_size, or set strategy.batch_norm = "cumulative"'
        )


def reestimate(model: nn.Module, batches: Iterable[Tensor], rule: Rule) -> dict[str, Tensor]:
    """Recompute the statistics of every batch normalisation, by the name of its buffer; empty without any.

    Args:
        model: its statistics are overwritten, its weights unchanged.
        batches: clean images, (b, c, h, w).
        rule: how the batches' statistics are combined.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    for layer in layers.values():
        nn.init.zeros_(layer.get_buffer("running_mean"))
        nn.init.ones_(layer.get_buffer("running_var"))
    history: dict[str, list[Tensor]] = {}
    training = model.training
    model.train()
    try:
        with torch.no_grad():
            for count, batch in enumerate(batches if layers else (), 1):
                for name, layer in layers.items():
                    own = momenta[name] if rule == "released" else None
                    layer.momentum = 1.0 / count if own is None else own
                model(batch)
                if rule == "released":
                    _remember(layers, history)
    finally:
        model.train(training)
        for name, layer in layers.items():
            layer.momentum = momenta[name]
    if rule == "released":
        return {name: _median(values) for name, values in history.items()}
    return {name: tensor.clone() for name, tensor in _buffers(layers).items()}


def _remember(layers: Mapping[str, nn.Module], history: dict[str, list[Tensor]]) -> None:
    for name, tensor in _buffers(layers).items():
        history.setdefault(name, []).append(tensor.clone())


def _buffers(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}.{buffer}" if name else buffer: layer.get_buffer(buffer)
        for name, layer in layers.items()
        for buffer in _BUFFERS
    }


def _median(values: list[Tensor]) -> Tensor:
    """NumPy's median: torch's own takes the lower of two middle values."""
    return torch.from_numpy(np.median([as_array(value.cpu()) for value in values], axis=0).astype(np.float32))
