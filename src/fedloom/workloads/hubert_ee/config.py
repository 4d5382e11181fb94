"""Settings of speech recognition with early exits."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import DataPath
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Iid, PartitionSettings
from fedloom.workloads._torch.settings import TrainingSettings

RATE = 16_000
"""Samples per second of all audio."""


class Synthetic(Settings):
    """English words spoken by eSpeak NG (the package `espeakng-loader`), in voices that training and test do not share.

    Each utterance is a few words drawn from a list of common ones, with white noise at a drawn level.
    """

    source: Literal["espeak"] = "espeak"
    train_utterances: Annotated[int, Field(ge=1)] = 800
    """Utterances for training, spread over the training voices."""
    test_utterances: Annotated[int, Field(ge=1)] = 300
    """Held-out utterances, spread over the test voices."""
    vocabulary: Annotated[int, Field(ge=2, le=200)] = 200
    """Number of words, the most common ones first."""
    words: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 3)
    """Least and greatest number of words of an utterance."""
    noise_db: tuple[float, ...] = (40.0, 20.0, 10.0)
    """Ratios of speech to noise, drawn evenly; dB."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Of the corpus; runs of other seeds share it."""


class LibriSpeech(Settings):
    """Folders of LibriSpeech: `SPEAKER/CHAPTER/*.flac` with `*.trans.txt`."""

    source: Literal["librispeech"] = "librispeech"
    train_folder: DataPath
    """Folder of the training speakers, such as `train-clean-100`."""
    test_folder: DataPath
    """Folder of the test speakers, such as `test-clean`."""
    max_seconds: Annotated[float, Field(gt=0.0)] = 16.0
    """Longer utterances are left out; seconds."""
    max_utterances: Annotated[int, Field(ge=1)] | None = None
    """Limit of each split; None takes all."""


SpeechSource = Annotated[Synthetic | LibriSpeech, Field(discriminator="source")]


class NetSettings(Settings):
    """The encoder: HuBERT's classes of transformers, with these sizes."""

    layers: Annotated[int, Field(ge=1)] = 6
    """Transformer layers."""
    width: Annotated[int, Field(ge=4)] = 96
    """Width of a frame's vector."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Heads of the attention; they must divide the width."""
    feed_forward: Annotated[int, Field(ge=1)] = 192
    """Width of the layers' hidden layer."""
    channels: Annotated[int, Field(ge=1)] = 32
    """Channels of the seven convolutions that make 49 frames of a second."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout in layers and branches."""
    checkpoint: DataPath | None = None
    """Folder of a HuBERT or wav2vec 2.0 checkpoint in Hugging Face's form; it replaces the sizes above."""

    @pydantic.model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ConfigError(f"workload.net.heads: {self.heads} heads do not divide a width of {self.width}")
        return self


class CriterionSettings(Settings):
    """Criterion by which an utterance leaves at a branch."""

    name: Literal["entropy", "confidence", "patience"] = "entropy"
    """`entropy`: mean entropy of the symbols below `threshold`; `confidence`: mean greatest probability above it;
    `patience`: as many branches in a row as `threshold` says decode the same text."""
    threshold: Annotated[float, Field(ge=0.0)] = 0.02
    """S. The entropy is divided by frames and by symbols, so that uniform output has ln(C) / C, 0.116 for C = 29, and
    the paper's 0.0035 is 0.10 nats per frame."""


class Config(TorchConfig):
    """Speech recognition by CTC over characters, with early exits."""

    name: str = "hubert_ee"
    speech: SpeechSource = Synthetic()
    """Source of the utterances; its `source` selects the kind."""
    partition: PartitionSettings = Iid()
    """Partition of the training set; `natural` makes clients of voices or speakers."""
    net: NetSettings = NetSettings()
    exits: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (2, 4)
    """Layers, from 1, with a branch after them; the last layer has the final head."""
    branch: Literal["attention", "linear"] = "attention"
    """`attention`: a transformer layer and a linear one; `linear`: a linear layer."""
    stage: Literal["joint", "final", "branches"] = "joint"
    """`joint`: final loss + `weight` times the mean of the branches'; `final`: the final loss alone; `branches`: the
    branches alone, the rest frozen: the second stage, in which only branches are sent."""
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """lambda of the joint loss."""
    start: DataPath | None = None
    """Folder of a finished run of the same network, whose weights are the first ones; `branches` needs it."""
    criterion: CriterionSettings = CriterionSettings()
    training: TrainingSettings = TrainingSettings(
        optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, batch_size=16, epochs=1, clip_norm=1.0
    )
    measure_time: bool = False
    """Time the evaluation at batch 1, with real stops and without; `cpu_seconds_saved` then differs from run to run."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.exits) != sorted({*self.exits}):
            raise ConfigError(f"workload.exits: expected rising layers, got {list(self.exits)}")
        if self.net.checkpoint is None and self.exits[-1] >= self.net.layers:
            raise ConfigError(
                f"workload.exits: there is no branch after layer {self.exits[-1]} of {self.net.layers}; expected 1 to "
                f"{self.net.layers - 1}"
            )
        if self.stage == "branches" and self.start is None:
            raise ConfigError(
                "workload.start: required for stage 'branches', whose encoder is frozen; name the folder of a run with "
                "stage 'final' or 'joint'"
            )
        return self
