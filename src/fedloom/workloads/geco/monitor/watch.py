"""A client's report: a histogram of mass accuracies for each network, explainer and version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np

from fedloom.core.errors import UnsupportedFeature
from fedloom.core.extras import needed_by
from fedloom.core.protocols import Inputs, Observation, Shard, Watch, require
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads.geco.monitor.config import Config
from fedloom.workloads.geco.monitor.pattern import Pattern
from fedloom.workloads.geco.monitor.tasks import Task
from fedloom.workloads.geco.sentences import Corpus, Sentence
from fedloom.workloads.geco.sources import load_corpus

if TYPE_CHECKING:
    from fedloom.workloads._pretrained.text_model import TextModel

_WANTED_BY = "monitor 'geco'"
Sh_contra = TypeVar("Sh_contra", bound=Shard, contravariant=True)


@runtime_checkable
class HasTextModels(Protocol):
    """A workload whose networks classify texts and can start from word vectors."""

    def text_models(self, inputs: Inputs) -> AbstractContextManager[Mapping[str, TextModel]]:
        """Load the global model and return its networks by name; they are valid within the context."""


@runtime_checkable
class HasMaskedSentences(Protocol[Sh_contra]):
    """A workload whose examples are sentences with known relevant words; their versions are its classes."""

    @property
    def version_names(self) -> tuple[str, ...]:
        """Return the names of the versions."""

    def masked_sentences(self, shard: Sh_contra) -> Sequence[Sentence]:
        """Return a shard's sentences."""

    def training_sentences(self, shard: Sh_contra) -> Sequence[Sentence]:
        """Return the training sentences that go with a shard."""


class ExplanationMasses(Watch):
    """Mass accuracies of explanations of the global model's decisions."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def check(self, workload: object) -> None:
        with needed_by(_WANTED_BY):
            import captum.attr  # noqa: F401  # so that a node without it is found before the first round
        require(workload, HasTextModels, _WANTED_BY)
        if "covariance" in self._config.explainers and not isinstance(workload, HasMaskedSentences):
            raise UnsupportedFeature(
                f"monitor.explainers: 'covariance' needs training sentences with known relevant words, but "
                f"{type(workload).__name__} has none; remove it, or use the workload 'geco'"
            )

    def __call__(self, workload: object, inputs: Inputs, shard: Shard, rng: np.random.Generator) -> Observation:
        """Explain decisions on a client's sentences. Nothing is drawn from `rng`: draws follow from the sentence."""
        from fedloom.workloads.geco.monitor import masses  # needs torch and captum, which a server has no need of

        task = self._task(workload, shard)
        with require(workload, HasTextModels, _WANTED_BY).text_models(inputs) as models:
            info = masses.Report(self._config, task, models).info()
        return Observation(num_examples=shard.num_examples, info=info)

    def _task(self, workload: object, shard: Shard) -> Task:
        limit = self._config.sentences
        if isinstance(workload, HasMaskedSentences):
            masked: HasMaskedSentences[Shard] = workload
            usable = [each for each in masked.masked_sentences(shard) if any(each.mask)]
            training = masked.training_sentences(shard) if "covariance" in self._config.explainers else None
            pattern = None if training is None else Pattern(training)
            return Task(tuple(usable[:limit]), masked.version_names, True, pattern)
        corpus = _own_sentences(self._config)
        part = shard.part if isinstance(shard, RowShard) else None
        usable = [each for each in corpus.test if any(each.mask)]
        if part is not None:  # part by part, versions of a pair together
            usable = [each for each in usable if each.pair % self._config.clients == part]
        return Task(tuple(usable[:limit]), corpus.versions, False, None)


@lru_cache(maxsize=2)
def _own_sentences(config: Config) -> Corpus:
    """Return the monitor's own sentences, the same for every client and run."""
    return load_corpus(config.source, 0)


def build_watch(config: Config) -> ExplanationMasses:
    """Return the client half a `Config` describes."""
    return ExplanationMasses(config)
