"""Models whose frozen weights have 16 bits."""

from __future__ import annotations

import torch
from torch import nn

from fedloom.workloads._torch.settings import DTypeName

TORCH: dict[DTypeName, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


def stored_in(model: nn.Module, dtype: DTypeName, head: str) -> nn.Module:
    """Convert a model's float weights and statistics in place, but those of its head, which is trained; returns it.

    Args:
        model: with weights in float32.
        dtype: of the result.
        head: name of the module that stays as it is.
    """
    if dtype == "float32":
        return model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not name.startswith(f"{head}."):
            tensor.data = tensor.data.to(TORCH[dtype])
    return model
