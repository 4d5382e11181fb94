"""Settings of image classification."""

from __future__ import annotations

from fedloom.core.config import PluginSettings
from fedloom.workloads._data.settings import Digits, Dirichlet, ImageSource, PartitionSettings
from fedloom.workloads._torch.settings import TrainingSettings
from fedloom.workloads._vision.settings import ModelSettings


class Config(PluginSettings):
    """Image classification with a small network."""

    name: str = "image_classification"
    data: ImageSource = Digits()
    """Where the images come from; its `source` says which of the kinds it is."""
    partition: PartitionSettings = Dirichlet()
    """How the training set is dealt to the clients; its `scheme` says which of the kinds it is."""
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
