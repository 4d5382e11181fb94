"""Pretrained image classifiers in transformers' form, from a folder or by name: ViT, DINOv2, Swin and their like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.core.errors import ConfigError, DataMissing


class HubClassifier(nn.Module):
    """A transformers model for image classification, called like the networks of our own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) to logits (b, num_labels)."""
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def build_hub_model(place: str, shape: tuple[int, int, int], num_labels: int) -> HubClassifier:
    """The model of a folder or name with its weights; its output layer is new where the number of classes differs.

    Args:
        place: a folder with `config.json` and safetensors, or a name on the hub.
        shape: channels, height and width of an image.
        num_labels: classes.

    Raises:
        DataMissing: there is no such model here, and none can be fetched.
        ConfigError: weights are missing or left over, or the images are not of the size it takes.
    """
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report the new output layer
    try:
        config = AutoConfig.from_pretrained(place)
        _check_images(place, config, shape)
        network, told = AutoModelForImageClassification.from_pretrained(
            place,
            num_labels=num_labels,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError) as exc:
        raise DataMissing(
            f"workload.model.pretrained: no image classifier in transformers' form at {place!r} (a folder from "
            f"{Path.cwd()}, or a name on the hub): {type(exc).__name__}: {str(exc).splitlines()[0]}"
        ) from exc
    finally:
        logging.set_verbosity(level)
    _check_weights(place, told)
    return HubClassifier(network)


def _check_images(place: str, config: Any, shape: tuple[int, int, int]) -> None:
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if size is not None and (size, size) != shape[1:]:
        raise ConfigError(
            f"workload.resize: {place!r} takes images of {size} x {size} pixels, these have {shape[1]} x {shape[2]}; "
            f"set workload.resize = {size}"
        )
    if channels is not None and channels != shape[0]:
        raise ConfigError(
            f"workload.channels: {place!r} takes {channels} channels, the images have {shape[0]}; "
            f"set workload.channels = {channels}"
        )


def _check_weights(place: str, told: Any) -> None:
    """Only the output layer may be new."""
    names = [*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])]
    odd = sorted(name for name in names if not name.startswith(("classifier.", "head.")))
    left = sorted(told["unexpected_keys"])
    if odd or left:
        raise ConfigError(
            f"workload.model.pretrained: the weights of {place!r} do not fit its config.json: missing or of another "
            f"shape: {', '.join(odd) or 'none'}; left over: {', '.join(left) or 'none'}"
        )
