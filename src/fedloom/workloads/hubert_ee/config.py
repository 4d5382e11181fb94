"""Settings of speech recognition with early exits."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import DataPath, PlainWord
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition_settings import Iid, PartitionSettings
from fedloom.workloads._torch.settings import TrainingSettings

Accent = Literal["en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc"]
RATE = 16_000
"""Samples per second of all audio."""


class Synthetic(Settings):
    """English words spoken by eSpeak NG (the package `espeakng-loader`), in voices that the splits do not share.

    Each utterance is a few words drawn from a list of common ones, with white noise at a drawn level.
    """

    source: Literal["espeak"] = "espeak"
    train_utterances: Annotated[int, Field(ge=1)] = 800
    """Utterances for training, spread over the training voices."""
    dev_utterances: Annotated[int, Field(ge=1)] = 120
    """Utterances that thresholds are calibrated on, spread over voices of their own."""
    test_utterances: Annotated[int, Field(ge=1)] = 300
    """Held-out utterances, spread over the test voices."""
    vocabulary: Annotated[int, Field(ge=2, le=200)] = 200
    """Number of words, the most common ones first."""
    words: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 3)
    """Least and greatest number of words of an utterance."""
    accents: Annotated[tuple[Accent, ...], Field(min_length=1)] = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp")
    """Accents of eSpeak NG; every voice speaks all of them."""
    flite: bool = False
    """Flite's voices, too (Debian's package `flite`): `kal16`, `awb` and `rms` in training, `kal` in the dev set, `slt`
    in the test; each as often as a variant of eSpeak NG's."""
    noise_db: Annotated[tuple[float, ...], Field(min_length=1)] = (40.0, 20.0, 10.0)
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
    dev_folder: DataPath | None = None
    """Folder of the speakers that a calibrated threshold is fitted to, such as `dev-clean`."""
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
    front: Literal["waveform", "log_mel"] = "waveform"
    """What makes 49 frames of a second. `waveform`: HuBERT's seven convolutions; `log_mel`: 40 log-mel bands,
    normalised for each utterance, and one convolution: for training from random weights on little speech."""
    channels: Annotated[int, Field(ge=1)] = 32
    """Channels of the convolutions."""
    positions: Annotated[int, Field(ge=2)] = 32
    """Frames that the convolution for positions sees."""
    norm: Literal["post", "pre"] = "post"
    """Layer normalisation behind each layer's parts (HuBERT base), or before them (HuBERT large)."""
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

    name: Literal["entropy", "confidence", "patience", "learned"] = "entropy"
    """`entropy`: mean entropy of the symbols below `threshold`; `confidence`: mean greatest probability above it;
    `patience`: as many branches in a row as `threshold` says decode the same text; `learned`: a logistic regression,
    fitted to the dev set, gives a chance above it that the branch has no more word errors than the final head."""
    threshold: Annotated[float, Field(ge=0.0)] | Literal["calibrated"] = "calibrated"
    """S; `calibrated`: that of the earliest exits whose word error rate on the dev set is within `tolerance`. The
    entropy is divided by frames and by symbols, so that uniform output has ln(C) / C, 0.116 for C = 29, and the
    paper's 0.0035 is 0.10 nats per frame."""
    tolerance: Annotated[float, Field(ge=0.0)] = 0.1
    """How much a calibrated threshold may raise the dev set's word error rate, as a share of the full model's."""

    @property
    def needs_dev(self) -> bool:
        """Return whether something is fitted to the dev set."""
        return self.threshold == "calibrated" or self.name == "learned"


class PretrainingSettings(Settings):
    """Masked-cluster prediction: targets are clusters of frames, predicted where the encoder's input is masked."""

    clusters: Annotated[int, Field(ge=2)] = 50
    """Clusters of k-means over the training frames, by their log-mel bands."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.08
    """Share of frames at which a masked span begins."""
    span: Annotated[int, Field(ge=1)] = 10
    """Frames of a masked span."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.1
    """tau: a cluster's logit is the cosine of frame and cluster over tau."""


class OutsideSettings(Settings):
    """Recordings of people in Debian's packages, read in every evaluation: `wer_NAME` with early exits, and
    `wer_full_depth_NAME`."""

    sources: tuple[Literal["pocketsphinx", "asterisk"], ...] = ()
    """`pocketsphinx`: ten sentences, five of them LibriVox's (`pocketsphinx-testdata`); `asterisk`: prompts of a
    telephone exchange, 8,000 samples per second (`asterisk-core-sounds-en-wav`)."""
    max_seconds: Annotated[float, Field(gt=0.0)] = 12.0
    """Longer recordings are left out; seconds."""


class Config(TorchConfig):
    """Speech recognition by CTC over characters, with early exits."""

    name: str = "hubert_ee"
    speech: SpeechSource = Synthetic()
    """Source of the utterances; its `source` selects the kind."""
    outside: OutsideSettings = OutsideSettings()
    """Tests on real speech besides the held-out utterances."""
    partition: PartitionSettings = Iid()
    """Partition of the training set; `natural` makes clients of voices or speakers."""
    net: NetSettings = NetSettings()
    exits: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (2, 4)
    """Layers, from 1, with a branch after them; the last layer has the final head."""
    branch: Literal["attention", "linear"] = "attention"
    """`attention`: a transformer layer and a linear one; `linear`: a linear layer."""
    stage: Literal["joint", "final", "branches", "two_stage", "pretrain"] = "joint"
    """`joint`: final loss + `weight` times the mean of the branches'; `final`: the final loss alone; `branches`: the
    branches alone, the rest frozen: the second stage, in which only branches are sent; `two_stage`: `final` in the
    first `first_rounds` rounds, then `branches`, in one run that sends all arrays; `pretrain`: masked-cluster
    prediction by the encoder alone, without transcripts."""
    first_rounds: Annotated[int, Field(ge=1)] | None = None
    """Rounds of the first of two stages; `two_stage` needs it."""
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """lambda of the joint loss."""
    start: DataPath | None = None
    """Folder of a finished run of the same network, whose weights are the first ones; `branches` needs it."""
    start_sha256: PlainWord | None = None
    """Digest that the weights of `start` must have, `model_sha256` of that run's summary, so that all clients freeze
    the same ones; None takes any."""
    depths: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers that clients have: client c the first `depths[c mod n]`, with the branches among them, and the final head
    if these are all. It sends the arrays it has; strategy `partial` averages each over the clients that sent it. A
    client with 0 trains nothing. None given: all layers."""
    augment: bool = False
    """Warp the frequencies of each training utterance, as another length of vocal tract would, and mask bands and
    frames; for front `log_mel`."""
    pretraining: PretrainingSettings = PretrainingSettings()
    criterion: CriterionSettings = CriterionSettings()
    training: TrainingSettings = TrainingSettings(
        optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, batch_size=16, epochs=1, clip_norm=1.0
    )
    measure_time: bool = False
    """Time the evaluation at batch 1, with real stops and without; `cpu_seconds_saved` then differs from run to run."""

    def stage_in(self, round: int) -> str:
        """Return which losses train in a round, from 1: `joint`, `final` or `branches`."""
        if self.stage != "two_stage":
            return self.stage
        return "final" if round <= (self.first_rounds or 0) else "branches"

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.exits) != sorted({*self.exits}):
            raise ConfigError(f"workload.exits: expected rising layers, got {list(self.exits)}")
        if self.net.checkpoint is None and self.exits[-1] >= self.net.layers:
            raise ConfigError(
                f"workload.exits: there is no branch after layer {self.exits[-1]} of {self.net.layers}; expected 1 to "
                f"{self.net.layers - 1}"
            )
        odd = [depth for depth in self.depths if depth not in (0, *self.exits, self.net.layers)]
        if odd and self.net.checkpoint is None:
            raise ConfigError(
                f"workload.depths: {odd[0]} is neither a layer with a branch nor the last; expected values of "
                f"{[0, *self.exits, self.net.layers]}"
            )
        if (self.first_rounds is not None) != (self.stage == "two_stage"):
            raise ConfigError(
                f"workload.first_rounds: required for stage 'two_stage', and for it alone; got {self.first_rounds} "
                f"with {self.stage!r}"
            )
        if self.depths and self.stage != "joint":
            raise ConfigError(f"workload.depths: only for stage 'joint', got {self.stage!r}; remove it")
        if self.augment and (self.net.front != "log_mel" or self.net.checkpoint is not None):
            raise ConfigError("workload.augment: only for workload.net.front 'log_mel' without a checkpoint; remove it")
        dev = isinstance(self.speech, Synthetic) or self.speech.dev_folder is not None
        if self.criterion.needs_dev and not dev and self.stage != "pretrain":
            raise ConfigError(
                "workload.speech.dev_folder: required by workload.criterion, which is fitted to a dev set; name a "
                "folder, or set workload.criterion.threshold to a number"
            )
        if self.start_sha256 is not None and self.start is None:
            raise ConfigError("workload.start_sha256: without effect without workload.start; remove it")
        if self.stage == "branches" and self.start is None:
            raise ConfigError(
                "workload.start: required for stage 'branches', whose encoder is frozen; name the folder of a run with "
                "stage 'final' or 'joint'"
            )
        return self

    def clients_have_state(self) -> bool:
        return False
