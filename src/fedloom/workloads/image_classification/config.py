"""Settings of image classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.core.config import PluginSettings, Settings
from fedloom.workloads._data.settings import Digits, Dirichlet, ImageSource, PartitionSettings
from fedloom.workloads._torch.settings import TrainingSettings


class ModelSettings(Settings):
    """The network. Its input follows the data's shape, its output the number of classes."""

    name: Literal["mlp", "cnn", "resnet8", "resnet20"] = "cnn"
    """`mlp`: dense layers; `cnn`: two 5 x 5 convolutions; `resnet8`, `resnet20`: He et al. 2016, section 4.2."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Widths of the hidden layers of `mlp`."""
    norm: Literal["batch", "group"] = "group"
    """Normalisation of the ResNets: batch statistics travel and are averaged, groups have none."""


class Config(PluginSettings):
    """Image classification with a small network."""

    name: str = "image_classification"
    data: ImageSource = Digits()
    """Where the images come from; its `source` says which of the kinds it is."""
    partition: PartitionSettings = Dirichlet()
    """How the training set is dealt to the clients; its `scheme` says which of the kinds it is."""
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
