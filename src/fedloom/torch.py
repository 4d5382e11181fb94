"""PyTorch models of your own in a federation, and the final model of a run as a PyTorch module.

Subclass `TorchWorkload`, define `model` and `dataset`, and `loss` where it is not cross-entropy. `load_model` takes a
run's folder.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._vision.augment_settings import AugmentSettings

if TYPE_CHECKING:
    from fedloom.workloads._base.examples import Examples, Found
    from fedloom.workloads._base.loading import load_model
    from fedloom.workloads._base.rows import RowData, RowSource, TensorRows
    from fedloom.workloads._base.workload import TorchWorkload
    from fedloom.workloads._vision.augment import augment_images

__all__ = [
    "TorchWorkload",
    "TorchConfig",
    "TrainingSettings",
    "AugmentSettings",
    "augment_images",
    "Examples",
    "Found",
    "RowData",
    "RowSource",
    "RowShard",
    "TensorRows",
    "load_model",
]
_HOMES = {
    "TorchWorkload": "_base.workload",
    "Examples": "_base.examples",
    "Found": "_base.examples",
    "RowData": "_base.rows",
    "RowSource": "_base.rows",
    "TensorRows": "_base.rows",
    "load_model": "_base.loading",
    "augment_images": "_vision.augment",
}
"""Modules that import PyTorch, by the names that come from them."""


def __getattr__(name: str) -> object:
    """Import PyTorch with the names that need it, so that a `config.py` imports none."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedloom.torch' has no attribute {name!r}")
    return vars(importlib.import_module(f"fedloom.workloads.{_HOMES[name]}"))[name]
