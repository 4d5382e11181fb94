"""A model's outputs on images: logits, and the inputs of its last layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.records import Array
from fedloom.workloads._torch.statistics import frozen_statistics

_BATCH = 250
RELEASED_BATCH = 128
"""Images per batch of the released code, which determines the batches of statistics."""


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """A model's outputs on N images."""

    logits: Array
    """(N, K), float64."""
    features: Array
    """(N, d), float64: the input of the last linear layer, or the logits without one."""

    @property
    def predictions(self) -> Array:
        """Return the class of the largest logit, (N,), int64."""
        found: Array = self.logits.argmax(axis=1)
        return found


def run_model(model: nn.Module, images: Tensor, *, batch_statistics: bool = False) -> ModelOutputs:
    """Run a model over normalised images (N, c, h, w).

    Args:
        model: left as it was, its running statistics too.
        images: on the model's device.
        batch_statistics: normalise each batch of 128 by itself, as a model in training mode does.
    """
    read: list[Tensor] = []
    head = next((layer for layer in reversed(list(model.modules())) if isinstance(layer, nn.Linear)), None)

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0].detach())

    hook = head.register_forward_pre_hook(keep) if head is not None else None
    training = model.training
    model.train(batch_statistics)
    try:
        with torch.inference_mode(), frozen_statistics(model):
            batches = torch.split(images, RELEASED_BATCH if batch_statistics else _BATCH)
            logits = torch.cat([model(batch) for batch in batches])
    finally:
        model.train(training)
        if hook is not None:
            hook.remove()
    features = torch.cat(read) if read else logits
    return ModelOutputs(_doubles(logits), _doubles(features.flatten(1)))


def _doubles(tensor: Tensor) -> Array:
    array: Array = np.asarray(tensor.cpu().numpy(), np.float64)
    return array
