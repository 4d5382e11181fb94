"""Image classification: data, model and local training on an agent."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import WorkloadInfo
from fedloom.workloads._adapters.targets import output_layer
from fedloom.workloads._base.images import image_rows
from fedloom.workloads._base.rows import RowData, TensorRows
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._data.images import load_images
from fedloom.workloads._pretrained.folder import PretrainedFolder
from fedloom.workloads._torch.stored_dtype import stored_in
from fedloom.workloads._vision.augment import augment_images
from fedloom.workloads._vision.checkpoint import Checkpoint
from fedloom.workloads._vision.hub_model import build_hub_model, find_hub_model
from fedloom.workloads._vision.models import build_model
from fedloom.workloads.image_classification.config import Config, Model


class ImageClassification(TorchWorkload[Config]):
    """Softmax classification of images; cross-entropy averaged over the minibatch."""

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._pretrained = _pretrained(config.model)
        self._images = load_images(config.data, config.resize, config.channels)
        self.trains_adapters_only = config.model.dtype != "float32"
        super().__init__(config, experiment)

    def dataset(self) -> RowData:
        data, device = self._images, self.device
        train, test = (
            TensorRows.of(x, y, device) for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
        )
        return image_rows(data, train, test)

    def model(self) -> nn.Module:
        model = self._network()
        return stored_in(model, self.config.model.dtype, output_layer(model)[0])

    def _network(self) -> nn.Module:
        """Return the network in float32."""
        if isinstance(self._pretrained, PretrainedFolder):
            return build_hub_model(self._pretrained, self._images.shape, self._images.num_labels)
        return build_model(self.config.model, self._images.shape, self._images.num_labels)

    def initial(self) -> nn.Module:
        model, fresh_head = self._network(), self.config.model.fresh_head
        if isinstance(self._pretrained, Checkpoint):
            self._pretrained.load_into(model, fresh_head=fresh_head)
        elif fresh_head:
            output_layer(model)[1].reset_parameters()
        return stored_in(model, self.config.model.dtype, output_layer(model)[0])

    def augment(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        settings = self.config.augment
        return tuple(augment_images(each, settings) for each in inputs) if settings.changes else inputs

    def describe(self) -> WorkloadInfo:
        info, found = super().describe(), self._pretrained
        if found is None:
            return info
        pretrained = {"name": self.config.model.pretrained, "weights_sha256": found.weights_sha256}
        return replace(info, data={**info.data, "pretrained": pretrained})


def build_workload(config: Config, experiment: Experiment) -> ImageClassification:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: data or pretrained weights are missing on this machine, or invalid.
        ConfigError: the partition leaves a client without examples, or a required GPU is missing.
    """
    return ImageClassification(config, experiment)


def _pretrained(model: Model) -> Checkpoint | PretrainedFolder | None:
    """Return the source of the initial weights; None if they are random."""
    if model.pretrained is None:
        return None
    return find_hub_model(model.pretrained) if model.transformers else Checkpoint.find(model.pretrained)
