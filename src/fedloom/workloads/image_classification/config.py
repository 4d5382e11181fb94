"""Settings of image classification."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import DataPath
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Dirichlet, PartitionSettings
from fedloom.workloads._data.settings import Digits, ImageSource
from fedloom.workloads._torch.settings import StoredWeights
from fedloom.workloads._vision.augment_settings import AugmentSettings
from fedloom.workloads._vision.settings import ModelSettings


class Model(StoredWeights, ModelSettings):
    """The network, and the source of its initial weights."""

    pretrained: DataPath | None = None
    """Start from these weights instead of random ones: the folder of a finished run of the same network (or its
    `.safetensors` file). With `transformers`, a folder in its form or a name on the hub."""
    transformers: bool = False
    """Whether `pretrained` names an image classifier of transformers (ViT, DINOv2, Swin, …), which is then the network
    in place of `name`. Targets of adapters are its modules' names: `q_proj` and `v_proj`, or `query` and `value`."""
    fresh_head: bool = False
    """Start the output layer from random weights even if the pretrained one has the same number of classes: another
    task."""

    @pydantic.model_validator(mode="after")
    def _has_weights(self) -> Self:
        if self.pretrained is None and (self.transformers or self.fresh_head):
            key = "transformers" if self.transformers else "fresh_head"
            raise ConfigError(f"workload.model.{key}: needs workload.model.pretrained, which is not set")
        return self


class Config(TorchConfig):
    """Image classification with a small network."""

    name: str = "image_classification"
    data: ImageSource = Digits()
    """Source of the images; its `source` selects the kind."""
    resize: Annotated[int, Field(ge=4)] | None = None
    """Side every image is resized to, pixels; None leaves them unchanged. Pretrained networks need the size they were
    trained on."""
    channels: Literal[1, 3] | None = None
    """1 makes every image grey, 3 repeats grey ones; None leaves them unchanged."""
    partition: PartitionSettings = Dirichlet()
    """Partition of the training set; its `scheme` selects the kind."""
    model: Model = Model()
    augment: AugmentSettings = AugmentSettings()

    @pydantic.model_validator(mode="after")
    def _has_precision(self) -> Self:
        self.model.check_precision(self.training)
        return self

    def clients_have_state(self) -> bool:
        return False
