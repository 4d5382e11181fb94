"""Training a classifier, and scoring it on shifted sets; the labels of those only say how accurate it is there.

Besides `train` and `evaluate` it does one action, `estimate`: part `part` of `parts` of the sets, each with its
accuracy and all its scores, in `info`. Inputs `second` and `initial` are a second model, from another seed, and the
model training began with; the scores that need them are left out where they are not sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import Action, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Array, Arrays, Job, JsonObject, Metrics, Record, Update
from fedloom.core.seeds import generator
from fedloom.strategies.mano.workload.config import Config
from fedloom.strategies.mano.workload.corruptions.suite import CORRUPTIONS, SEVERITIES, corrupted
from fedloom.strategies.mano.workload.images import Split, split
from fedloom.strategies.mano.workload.projnorm import projection_norm, trained_parameters
from fedloom.strategies.mano.workload.scoring import Source, balance, mano_scores, rival_scores
from fedloom.strategies.mano.workload.seeing import see
from fedloom.strategies.mano.workload.sets import ShiftedSet, pixels_of, shifted_sets
from fedloom.workloads._data.images import ImageData, load_images
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads._torch.trainer import Trainer, evaluate_in_batches
from fedloom.workloads._vision.augment import augmented
from fedloom.workloads._vision.models import build_model
from fedloom.workloads._vision.own import build_classifier, load_weights

SECOND = "second"
"""Group, and input, of the second model."""
INITIAL = "initial"
"""Input that carries the model training began with."""
_EVALUATION_BATCH = 250
_SOURCE_IMAGES = 2000
"""At most so many validation images that source statistics are taken of."""


@dataclass(frozen=True, slots=True)
class ScoredShard(RowShard):
    """Places in the training images (a client's), or in the test images."""

    piece: int | None = None
    """Number of the piece, where each is spoilt in its own way."""


class Scoring:
    """A classifier and its scores; where a second model is sent, it is trained beside the first on the same images."""

    def __init__(
        self, config: Config, data: ImageData, rows: Split, experiment: Experiment, device: torch.device
    ) -> None:
        self._config, self._data, self._rows, self._device = config, data, rows, device
        self._rounds, self._seed = experiment.rounds_known("workload mano"), experiment.seed
        self._train = _tensors(data.x_train[rows.train], data.y_train[rows.train], device)
        self._test = _tensors(data.x_test, data.y_test, device)
        self._sets = shifted_sets(config, data, rows.test_styles, experiment.seed)
        self._sources: dict[int, tuple[Record, Source]] = {}
        self._references: dict[int, tuple[Record, Tensor]] = {}
        with exact(device, seed=0):
            self._trainer = Trainer(self._new_model(), config.training, device)
            self._second = Trainer(self._new_model(), config.training, device)

    def describe(self) -> WorkloadInfo:
        shards, labels = self._rows.shards, self._data.y_train[self._rows.train]
        used = {"num_train": len(labels), "num_validation": len(self._rows.validation), "num_sets": len(self._sets)}
        return WorkloadInfo(
            data={**self._data.info, **used},
            client_sizes=shards.sizes.tolist(),
            label_counts=shards.label_counts(labels, self._data.num_labels).tolist(),
            label_names=self._data.info["label_names"],
        )

    def init(self, rng: np.random.Generator) -> Record:
        names = (MODEL, SECOND) if self._config.second else (MODEL,)
        return Record({name: self._initial(int(rng.integers(2**63))) for name in names})

    def shard(self, client: int) -> ScoredShard:
        return ScoredShard(self._rows.shards.client(client))

    def held_out(self, part: int, parts: int) -> ScoredShard:
        shard = ScoredShard.test_part(len(self._test[1]), part, parts)
        return replace(shard, piece=part) if self._config.spoilt_pieces else shard

    def train(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        shard: ScoredShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        """One client's training of the model, and after it of the second one."""
        if self._config.frozen:
            return Update(num_examples=shard.num_examples, groups={MODEL: inputs[MODEL].groups[MODEL]})
        update = self._trained(self._trainer, job, inputs, shard, rule, rng)
        if SECOND not in inputs:
            return update
        second = {MODEL: Record({MODEL: inputs[SECOND].groups[SECOND]})}
        other = self._trained(self._second, job, second, shard, None, rng)
        groups = {**update.groups, SECOND: other.groups[MODEL]}
        return Update(num_examples=update.num_examples, groups=groups, metrics=update.metrics)

    def evaluate(self, inputs: Mapping[str, Record], shard: ScoredShard) -> Metrics:
        """`loss` (cross-entropy) and `accuracy` (share of right answers), on a test part or a client's own data."""
        images, labels = self._shown(shard)

        def measure(batch: slice) -> tuple[Tensor, Tensor]:
            logits = self._trainer.model(images[batch])
            right = (logits.argmax(1) == labels[batch]).sum()
            return F.cross_entropy(logits, labels[batch], reduction="sum"), right

        with exact(self._device), torch.inference_mode():
            self._trainer.load(inputs)
            self._trainer.model.eval()
            return evaluate_in_batches(len(labels), _EVALUATION_BATCH, measure, ("loss", "accuracy"))

    def logits(self, inputs: Mapping[str, Record], shard: ScoredShard) -> tuple[Array, Array]:
        """The global model's logits on a test part or a client's own data, (n, K) float32, and the labels, (n,)."""
        images, labels = self._shown(shard)
        with exact(self._device), torch.inference_mode():
            self._trainer.load(inputs)
            self._trainer.model.eval()
            parts = [self._trainer.model(batch) for batch in torch.split(images, _EVALUATION_BATCH)]
            return torch.cat(parts).cpu().numpy(), labels.cpu().numpy()

    @property
    def actions(self) -> Mapping[str, Action]:
        """`estimate`: the table's lines for one part of the sets."""
        return {"estimate": self._estimate}

    def _estimate(
        self, job: Job, inputs: Mapping[str, Record], state: Record | None, rng: np.random.Generator
    ) -> Update:
        part, parts = int(job.knobs["part"]), int(job.knobs["parts"])
        with exact(self._device, seed=0):
            found = [self._estimated(each, inputs) for each in self._sets[part::parts]]
        return Update(num_examples=0, info={"sets": found})

    def _shown(self, shard: ScoredShard) -> tuple[Tensor, Tensor]:
        """A shard's normalised images, spoilt where its piece is, and labels."""
        images, labels = self._test if shard.held_out else self._train
        rows = torch.from_numpy(shard.rows).to(self._device)
        if shard.piece is None:
            return images.index_select(0, rows), labels.index_select(0, rows)
        pixels, _ = pixels_of(self._data, shard.rows)
        name, severity = list(CORRUPTIONS)[shard.piece % len(CORRUPTIONS)], 1 + shard.piece % len(SEVERITIES)
        spoilt = corrupted(pixels, name, severity, bank="mild", seed=self._seed, rows=shard.rows)
        return self._normalised(spoilt), labels.index_select(0, rows)

    def _normalised(self, pixels: Array) -> Tensor:
        mean, std = self._data.moments
        return torch.from_numpy(((pixels - mean) / std).astype(np.float32)).to(self._device)

    def _trained(
        self,
        trainer: Trainer,
        job: Job,
        inputs: Mapping[str, Record],
        shard: ScoredShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        images, labels = self._train

        def loss(rows: Tensor) -> Tensor:
            batch = augmented(images.index_select(0, rows), self._config.augment)
            return F.cross_entropy(trainer.model(batch), labels.index_select(0, rows))

        return trainer.train(shard.rows, loss, inputs, rule, job.knobs, rng, rate=self._rate(job.round))

    def _rate(self, round: int) -> float:
        rate = self._config.training.learning_rate
        return rate * 0.5 * (1.0 + math.cos(math.pi * (round - 1) / self._rounds)) if self._config.cosine else rate

    def _estimated(self, each: ShiftedSet, inputs: Mapping[str, Record]) -> JsonObject:
        """One set's line of the table."""
        pixels, labels = each.load()
        images, adapts = self._normalised(pixels), self._config.batch_statistics
        self._trainer.load({MODEL: inputs[MODEL]})
        seen = see(self._trainer.model, images)
        second = None
        if SECOND in inputs:
            self._second.load({MODEL: Record({MODEL: inputs[SECOND].groups[SECOND]})})
            second = see(self._second.model, images, batch_statistics=adapts)
        scored = see(self._trainer.model, images, batch_statistics=True) if adapts else seen
        name = f"{each.group}/{each.name}/{each.severity}"
        scores = mano_scores(scored) | rival_scores(scored, second, self._source(inputs[MODEL]), name)
        if INITIAL in inputs and self._config.projnorm.steps:
            scores["proj_norm"] = self._projection(images, seen.predictions, inputs[INITIAL], name)
        return {
            "group": each.group,
            "family": each.family,
            "name": each.name,
            "severity": each.severity,
            "samples": len(labels),
            "accuracy": float((seen.predictions == labels).mean()),
            "scored_accuracy": float((scored.predictions == labels).mean()),
            "balance": balance(scored),
            "scores": scores,
        }

    def _source(self, record: Record) -> Source:
        """What the rivals know of the source, made once per model."""
        if id(record) not in self._sources:
            rows = self._rows.validation[:_SOURCE_IMAGES]
            images, _ = _tensors(self._data.x_train[rows], self._data.y_train[rows], self._device)
            counts = np.bincount(self._train[1].cpu().numpy(), minlength=self._data.num_labels)
            seen = see(self._trainer.model, images, batch_statistics=self._config.batch_statistics)
            made = Source.of(seen, self._data.y_train[rows], counts / counts.sum(), self._seed)
            self._sources = {id(record): (record, made)}  # the record is kept, so its identity stays its own
        return self._sources[id(record)][1]

    def _projection(self, images: Tensor, predictions: Array, initial: Record, name: str) -> float:
        settings = self._config.projnorm
        self._second.load({MODEL: initial})

        def trained(x: Tensor, y: Array, what: str) -> Tensor:
            rng = generator(self._seed, "mano", "projection", what)
            return trained_parameters(self._second.model, x, y, settings, rng)

        if id(initial) not in self._references:
            x, y = self._train
            self._references = {id(initial): (initial, trained(x, y.cpu().numpy(), "source"))}
        return projection_norm(self._references[id(initial)][1], trained(images, predictions, name))

    def _initial(self, seed: int) -> Arrays:
        with exact(torch.device("cpu"), seed=seed):
            model = self._new_model()
            if self._config.weights is not None:
                load_weights(model, self._config.weights)
            return Trainer(model, self._config.training, torch.device("cpu")).arrays

    def _new_model(self) -> nn.Module:
        if self._config.classifier is not None:
            return build_classifier(self._config.classifier, self._data.shape, self._data.num_labels)
        return build_model(self._config.model, self._data.shape, self._data.num_labels)


def _tensors(images: Array, labels: Array, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.array(images)).to(device), torch.from_numpy(np.array(labels)).to(device)


def build_workload(config: Config, experiment: Experiment) -> Scoring:
    """The workload a `Config` describes, for the experiment's clients, rounds and seed.

    Raises:
        DataMissing: the data, the weights or a folder of sets is not on this machine, or not what it should be.
        ConfigError: a client is left without examples, the user's classifier is not one, or there is no GPU that is
            asked for.
    """
    data = load_images(config.data)
    rows = split(config, data, experiment.clients, experiment.seed)
    return Scoring(config, data, rows, experiment, choose_device(config.training.device))
