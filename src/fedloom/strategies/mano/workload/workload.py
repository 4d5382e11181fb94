"""Training a classifier, and scoring it on shifted sets, whose labels are used only for its accuracy on them.

Besides `train` and `evaluate` it does one action, `estimate`: part `part` of `parts` of the sets, each with its
accuracy and all its scores, in `info`. Inputs `second` and `initial` are a second model, from another seed, and the
model training began with; the scores that need them are omitted if they are not sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import Action, Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Array, Job, JsonObject, Record, Update
from fedloom.core.seeds import generator
from fedloom.strategies.mano.workload.config import Config
from fedloom.strategies.mano.workload.corruptions.suite import CORRUPTIONS, SEVERITIES, corrupted
from fedloom.strategies.mano.workload.images import split
from fedloom.strategies.mano.workload.inference import run_model
from fedloom.strategies.mano.workload.projnorm import projection_norm, trained_parameters
from fedloom.strategies.mano.workload.scoring import Source, balance, mano_scores, rival_scores
from fedloom.strategies.mano.workload.sets import ShiftedSet, pixels_of, shifted_sets
from fedloom.workloads._base.images import image_rows
from fedloom.workloads._base.rows import RowData, RowSource, TensorRows
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.trainer import LocalTraining, Trainer
from fedloom.workloads._vision.augment import augmented
from fedloom.workloads._vision.models import build_model
from fedloom.workloads._vision.user_classifier import build_classifier, load_weights

SECOND = "second"
"""Group, and input, of the second model."""
INITIAL = "initial"
"""Input with the initial model."""
_SOURCE_IMAGES = 2000
"""Limit of validation images for source statistics."""


class Scoring(TorchWorkload[Config]):
    """A classifier and its scores; a second model is trained next to the first on the same images if it is sent."""

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._rounds, self._seed = experiment.rounds_known("workload mano"), experiment.seed
        self._images = data = load_images(config.data)
        self._rows = rows = split(config, data, experiment.num_clients, experiment.seed)
        super().__init__(config, experiment)
        self._sets = shifted_sets(config, data, rows.test_styles, experiment.seed)
        self._sources: dict[int, tuple[Record, Source]] = {}
        self._references: dict[int, tuple[Record, Tensor]] = {}
        with exact(self.device, seed=0):
            self._second = Trainer(self.model(), config.training, self.device)

    def dataset(self) -> RowData:
        data, rows = self._images, self._rows
        labels = data.y_train[rows.train]
        used = {"num_train": len(labels), "num_validation": len(rows.validation)}
        self._train = TensorRows.of(np.array(data.x_train[rows.train]), np.array(labels), self.device)
        test = TensorRows.of(np.array(data.x_test), np.array(data.y_test), self.device)
        return replace(
            image_rows(data, self._train, test),
            info={**data.info, **used},
            labels=labels,
            shards=rows.shards,
        )

    def model(self) -> nn.Module:
        if self.config.classifier is not None:
            return build_classifier(self.config.classifier, self._images.shape, self._images.num_labels)
        return build_model(self.config.model, self._images.shape, self._images.num_labels)

    def initial(self) -> nn.Module:
        model = self.model()
        if self.config.weights is not None:
            load_weights(model, self.config.weights)
        return model

    def init(self, rng: np.random.Generator) -> Record:
        groups = dict(super().init(rng).groups)
        if self.config.second:
            groups[SECOND] = super().init(rng).groups[MODEL]
        return Record(groups)

    def describe(self) -> WorkloadInfo:
        info = super().describe()
        return replace(info, data={**info.data, "num_sets": len(self._sets)})

    def train(
        self,
        job: Job,
        inputs: Inputs,
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        """Train the model on one client, and then the second one."""
        if self.config.frozen:
            return Update(num_examples=shard.num_examples, groups={MODEL: inputs[MODEL].groups[MODEL]})
        local = self.local_training(self.network, job, shard, rule)
        update = self.trainer.train(inputs, local, rng)
        if SECOND not in inputs:
            return update
        second = {MODEL: Record({MODEL: inputs[SECOND].groups[SECOND]})}
        other = self._second.train(second, self.local_training(self._second.model, job, shard, None), rng)
        groups = {**update.groups, SECOND: other.groups[MODEL]}
        return Update(num_examples=update.num_examples, groups=groups, metrics=update.metrics)

    def local_training(self, model: nn.Module, job: Job, shard: RowShard, rule: LocalRule | None) -> LocalTraining:
        return replace(super().local_training(model, job, shard, rule), rate=self._rate(job.round))

    def augment(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(augmented(each, self.config.augment) for each in inputs)

    def examples(self, shard: RowShard) -> tuple[RowSource, Array]:
        """Return normalised images, corrupted if the shard is a part to corrupt."""
        if shard.part is None or not self.config.spoilt_pieces:
            return super().examples(shard)
        pixels, labels = pixels_of(self._images, shard.rows)
        name, severity = list(CORRUPTIONS)[shard.part % len(CORRUPTIONS)], 1 + shard.part % len(SEVERITIES)
        changed = corrupted(pixels, name, severity, bank="mild", seed=self._seed, rows=shard.rows)
        truth = torch.from_numpy(labels).to(self.device)
        return TensorRows((self._normalised(changed),), truth), np.arange(len(shard.rows))

    @property
    def actions(self) -> Mapping[str, Action]:
        """`estimate`: the table's lines for one part of the sets."""
        return {**super().actions, "estimate": self._estimate}

    def _estimate(self, job: Job, inputs: Inputs, state: Record | None, rng: np.random.Generator) -> Update:
        part, parts = int(job.knobs["part"]), int(job.knobs["parts"])
        with exact(self.device, seed=0):
            found = [self._estimated(each, inputs) for each in self._sets[part::parts]]
        return Update(num_examples=0, info={"sets": found})

    def _normalised(self, pixels: Array) -> Tensor:
        mean, std = self._images.moments
        return torch.from_numpy(((pixels - mean) / std).astype(np.float32)).to(self.device)

    def _rate(self, round: int) -> float:
        rate = self.config.training.learning_rate
        return rate * 0.5 * (1.0 + math.cos(math.pi * (round - 1) / self._rounds)) if self.config.cosine else rate

    def _estimated(self, each: ShiftedSet, inputs: Inputs) -> JsonObject:
        """Return one set's line of the table."""
        pixels, labels = each.load()
        images, adapts = self._normalised(pixels), self.config.batch_statistics
        self.trainer.load({MODEL: inputs[MODEL]})
        outputs = run_model(self.network, images)
        second = None
        if SECOND in inputs:
            self._second.load({MODEL: Record({MODEL: inputs[SECOND].groups[SECOND]})})
            second = run_model(self._second.model, images, batch_statistics=adapts)
        scored = run_model(self.network, images, batch_statistics=True) if adapts else outputs
        name = f"{each.group}/{each.name}/{each.severity}"
        scores = mano_scores(scored) | rival_scores(scored, second, self._source(inputs[MODEL]), name)
        if INITIAL in inputs and self.config.projnorm.steps:
            scores["proj_norm"] = self._projection(images, outputs.predictions, inputs[INITIAL], name)
        return {
            "group": each.group,
            "family": each.family,
            "name": each.name,
            "severity": each.severity,
            "samples": len(labels),
            "accuracy": float((outputs.predictions == labels).mean()),
            "scored_accuracy": float((scored.predictions == labels).mean()),
            "balance": balance(scored),
            "scores": scores,
        }

    def _source(self, record: Record) -> Source:
        """Return the rivals' knowledge of the source, computed once per model."""
        if id(record) not in self._sources:
            rows = self._rows.validation[:_SOURCE_IMAGES]
            images = torch.from_numpy(np.array(self._images.x_train[rows])).to(self.device)
            counts = np.bincount(self.data.labels, minlength=self._images.num_labels)
            outputs = run_model(self.network, images, batch_statistics=self.config.batch_statistics)
            made = Source.of(outputs, self._images.y_train[rows], counts / counts.sum(), self._seed)
            self._sources = {id(record): (record, made)}  # the reference to the record keeps its identity unique
        return self._sources[id(record)][1]

    def _projection(self, images: Tensor, predictions: Array, initial: Record, name: str) -> float:
        settings = self.config.projnorm
        self._second.load({MODEL: initial})

        def trained(x: Tensor, y: Array, what: str) -> Tensor:
            rng = generator(self._seed, "mano", "projection", what)
            return trained_parameters(self._second.model, x, y, settings, rng)

        if id(initial) not in self._references:
            x = self._train.inputs[0]
            self._references = {id(initial): (initial, trained(x, self.data.labels, "source"))}
        return projection_norm(self._references[id(initial)][1], trained(images, predictions, name))


def build_workload(config: Config, experiment: Experiment) -> Scoring:
    """Return the workload a `Config` describes, for the experiment's clients, rounds and seed.

    Raises:
        DataMissing: the data, the weights or a folder of sets is missing on this machine, or invalid.
        ConfigError: a client has no examples, the user's classifier is invalid, or a required GPU is
            missing.
    """
    return Scoring(config, experiment)
