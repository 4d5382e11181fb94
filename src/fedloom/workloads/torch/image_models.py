"""Networks for images by the names of timm and transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import Dataset

from fedloom.core.errors import ConfigError, PackageMissing
from fedloom.workloads._base.classes import all_targets
from fedloom.workloads._base.columns import as_column
from fedloom.workloads._base.dataset_rows import DatasetRows
from fedloom.workloads._base.examples import Examples
from fedloom.workloads._base.rows import RowSource, TensorRows
from fedloom.workloads._base.task import CPU
from fedloom.workloads._vision.hub_model import build_hub_model, find_hub_model
from fedloom.workloads.torch.tables import outputs_of
from fedloom.workloads.torch.types import Task

_TIMM, _TRANSFORMERS = "timm:", "transformers:"


def is_named(model: str) -> bool:
    """Return whether a model is a network of one of the two packages."""
    return model.startswith((_TIMM, _TRANSFORMERS))


def image_model(model: str, examples: Examples, task: Task | None) -> Callable[[], nn.Module]:
    """Return what makes a network for images, with as many channels and outputs as the examples need.

    Args:
        model: `timm:NAME`, with weights drawn by the seed, or `transformers:PLACE`, with the weights there.
        examples: whose images and targets count.
        task: what it learns; None takes classes for whole numbers, else a regression.

    Raises:
        PackageMissing: timm or transformers is not installed.
        ConfigError: the examples are no images, or timm has no such network.
        DataMissing: there is no such model of transformers here.
    """
    rows = _rows(examples)
    (images, *_), _ = rows.batch(torch.arange(1))
    if images.dim() != 4:
        raise ConfigError(
            f"workload.model: {model!r} needs images (n, channels, height, width), found inputs of shape "
            f"(n, {', '.join(map(str, images.shape[1:]))})"
        )
    channels, height, width = images.shape[1:]
    outputs = outputs_of(all_targets(rows), examples, task)
    if model.startswith(_TRANSFORMERS):
        found = find_hub_model(model.removeprefix(_TRANSFORMERS), "workload.model")
        return lambda: build_hub_model(found, (channels, height, width), outputs)
    return _of_timm(model.removeprefix(_TIMM), channels, outputs)


def _of_timm(name: str, channels: int, outputs: int) -> Callable[[], nn.Module]:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as exc:
        raise PackageMissing(
            f"workload.model = 'timm:{name}' needs the package 'timm', which is not installed: pip install timm"
        ) from exc
    known: list[str] = timm.list_models()
    if name not in known:
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:8]) or f"one of its {len(known)} networks"
        raise ConfigError(f"workload.model: timm has no network {name!r}; expected {near}")

    def make() -> nn.Module:
        made: nn.Module = timm.create_model(name, pretrained=False, in_chans=channels, num_classes=outputs)
        return made

    return make


def _rows(examples: Examples) -> RowSource:
    """Return all examples, or the first client's."""
    train = examples.train
    if isinstance(train, list):
        train = train[0]
    if isinstance(train, Dataset):
        return DatasetRows(train, CPU, "workload.data: the examples")
    if not isinstance(train, tuple):
        raise ConfigError("workload.model: a network by name needs examples of all clients; name a model of your own")
    last = len(train) - 1
    *inputs, targets = (as_column(each, "the images", "data", targets=n == last) for n, each in enumerate(train))
    return TensorRows(tuple(inputs), targets)
