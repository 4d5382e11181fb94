"""Pretrained image classifiers in transformers' form, from a folder or by name: ViT, DINOv2, Swin and their like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import Info
from fedloom.workloads._pretrained.folder import Location, PretrainedFolder, find_pretrained, quiet

_SETTING = "workload.model.pretrained"
_REMEDY = "Set it to a folder with config.json and .safetensors of an image classifier"


class HubClassifier(nn.Module):
    """A transformers model for image classification, called like fedloom's networks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) to logits (b, num_labels)."""
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def find_hub_model(place: str, setting: str = _SETTING) -> PretrainedFolder:
    """Return the folder of a model.

    Args:
        place: the folder, or a name on the hub.
        setting: what names it.

    Raises:
        DataMissing: there is none here, and none can be downloaded.
    """
    return find_pretrained(Location(place, setting, _REMEDY, {}))


def build_hub_model(found: PretrainedFolder, shape: tuple[int, int, int], num_labels: int) -> HubClassifier:
    """Return the model of a folder with its weights; its output layer is new if the number of classes differs.

    Args:
        found: a folder with `config.json` and safetensors.
        shape: channels, height and width of an image.
        num_labels: classes.

    Raises:
        DataMissing: the folder contains no image classifier.
        ConfigError: weights are missing or left over, or the images are not of the size it takes.
    """
    from transformers import AutoModelForImageClassification

    _check_images(found, shape)
    try:
        with quiet():  # it would report the new output layer
            network, reported = AutoModelForImageClassification.from_pretrained(
                str(found.path),
                num_labels=num_labels,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError) as exc:
        raise DataMissing(
            f"{_SETTING}: {found.path} contains no image classifier: {type(exc).__name__}: {str(exc).splitlines()[0]}"
        ) from exc
    _check_weights(found.name, reported)
    return HubClassifier(network)


def _check_images(found: PretrainedFolder, shape: tuple[int, int, int]) -> None:
    place, size, channels = found.name, found.config.get("image_size"), found.config.get("num_channels")
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


def _check_weights(place: str, reported: Info) -> None:
    """Check that only the output layer is new."""
    names = [*reported["missing_keys"], *(key for key, *_ in reported["mismatched_keys"])]
    odd = sorted(name for name in names if not name.startswith(("classifier.", "head.")))
    left = sorted(reported["unexpected_keys"])
    if odd or left:
        raise ConfigError(
            f"workload.model.pretrained: the weights of {place!r} do not match its config.json: missing or of another "
            f"shape: {', '.join(odd) or 'none'}; left over: {', '.join(left) or 'none'}"
        )
