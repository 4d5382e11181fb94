"""Settings that every workload with a PyTorch model has, with no heavy import."""

from __future__ import annotations

from fedloom.core.config import PluginSettings
from fedloom.workloads._data.partition_settings import Iid, PartitionSettings
from fedloom.workloads._torch.settings import TrainingSettings


class TorchConfig(PluginSettings):
    """Base of the `Config` of a workload with a PyTorch model."""

    partition: PartitionSettings = Iid()
    """Partition of the training set; its `scheme` selects the kind."""
    training: TrainingSettings = TrainingSettings()

    def rounds_needed_by(self) -> str:
        return self.training.rounds_needed_by
