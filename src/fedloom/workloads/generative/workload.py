"""The generative families on an agent: data, training of all members, bits per dimension, samples."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import Inputs, LocalRule
from fedloom.core.records import Array, Info, Job, JsonObject, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator
from fedloom.workloads._base.images import image_rows
from fedloom.workloads._base.rows import RowData, TensorRows
from fedloom.workloads._base.task import minibatches
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._data import cache
from fedloom.workloads._data.images import ImageData, load_images
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.trainer import Trainer
from fedloom.workloads.generative.census import Images, census
from fedloom.workloads.generative.config import Config
from fedloom.workloads.generative.families import KINDS
from fedloom.workloads.generative.learning import Lesson, PlayersOptimizer
from fedloom.workloads.generative.making import Models
from fedloom.workloads.generative.member import Form
from fedloom.workloads.generative.noise import RowNoise

_PLACES = {name: place for place, name in enumerate(KINDS)}
"""Number of each member's stream of noise in evaluations."""


class Generative(TorchWorkload[Config]):
    """Members of all families; a client's Markov chains are its state between rounds and never part of the model."""

    keeps_client_state = True
    own_training = True

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._images = load_images(config.data, config.size, channels=1)
        self._images.check_pixels("generative")
        _, height, width = self._images.shape
        self._form = Form(height, width, config.levels, self._images.num_labels)
        super().__init__(config, experiment)

    def dataset(self) -> RowData:
        data, count = self._images, self.config.train_examples
        x, y, groups = levels_of(data.x_train, data, self.config.levels), data.y_train, data.groups
        if count is not None and count < len(y):
            rows = np.sort(generator(self.experiment.seed, "generative", "examples").permutation(len(y))[:count])
            x, y, groups = x[rows], y[rows], None if groups is None else groups[rows]
        drawn = cache.digest_of([data.sha256, count, self.experiment.seed, self.config.levels])
        data = replace(data, x_train=x, y_train=y, groups=groups, sha256=drawn)
        test = TensorRows.of(levels_of(data.x_test, data, self.config.levels), data.y_test, self.device)
        return image_rows(data, TensorRows.of(x, y, self.device), test)

    def model(self) -> nn.Module:
        return Models(self.config, self._form)

    def initial_info(self, model: nn.Module) -> Info:
        return {}

    def new_trainer(self, model: nn.Module, device: torch.device) -> Trainer:
        settings = self.config.training
        if not isinstance(model, Models):
            raise ConfigError(f"workload generative: expected its own model, got a {type(model).__name__}")
        return Trainer(model, settings, device, optimizer=partial(PlayersOptimizer, model=model, settings=settings))

    def train(
        self,
        job: Job,
        inputs: Inputs,
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:
        """Train all members; metrics are the classifier's `loss` and each player's, `loss_<member>`."""
        models, (source, rows) = self.models, self.examples(shard)
        lesson = Lesson(models, int(rng.integers(2**62)), state, self.device)

        def loss_of(batch: Tensor) -> Tensor:
            (x,), y = source.batch(batch)
            return lesson.gradients(x, y)

        local = replace(self.local_training(models, job, shard, rule), loss_of=loss_of)
        update = self.trainer.train(inputs, local, rng)
        if not update.metrics:
            return update
        (x,), _ = source.batch(torch.from_numpy(rows).to(self.device))
        with torch.no_grad():
            for member in models.members.values():
                member.observe(x)
        losses = {f"loss_{name.replace('.', '_')}": Mean(*each) for name, each in lesson.losses.items()}
        return replace(
            update,
            groups={"model": self.trainer.arrays},
            metrics={**update.metrics, **losses},
            info={"seconds": lesson.seconds},
            state=lesson.state(),
        )

    def evaluate(self, inputs: Inputs, shard: RowShard, state: Record | None = None) -> Metrics:
        """Return `bits_per_dim_<member>` of each measured member, and `bits_per_dim_<family>` of each family's first.

        They are sums over examples, so the mean over clients is exact. `accuracy` and `loss` are the classifier's.
        """
        source, rows = self.examples(shard)
        bits = dict.fromkeys(self.config.measured, 0.0)
        with self.evaluating(inputs):
            for batch in minibatches(rows, self.evaluation_batch, self.device):
                (x,), _ = source.batch(batch)
                for name in bits:
                    noise = RowNoise(batch, 2 * _PLACES[name] + int(shard.held_out))
                    bits[name] += float(self.models.members[name].bits_per_dim(x, noise).double().sum())
        found = {f"bits_per_dim_{name}": Mean(total, float(len(rows))) for name, total in bits.items() if len(rows)}
        for name in bits:
            if len(rows):
                found.setdefault(f"bits_per_dim_{KINDS[name].family}", found[f"bits_per_dim_{name}"])
        return {**super().evaluate(inputs, shard), **found}

    def census(
        self, inputs: Inputs, shard: RowShard, rng: np.random.Generator, *, samples: int, pictures: int
    ) -> JsonObject:
        """Return what the monitor asks of a client: sums over its images and over samples (`census.census`)."""
        source, rows = self.examples(shard)
        seed, test = int(rng.integers(2**62)), self.data.test
        held_out = None
        with self.evaluating(inputs):
            (own,), _ = source.batch(torch.from_numpy(rows).to(self.device))
            if test is not None and not shard.held_out:
                (held_out,), _ = test.batch(torch.arange(len(test), device=self.device))
            return census(self.models, Images(own, held_out), samples, pictures, seed)

    @property
    def models(self) -> Models:
        """Return the classifier and the members."""
        network = self.network
        if not isinstance(network, Models):
            raise ConfigError(f"workload generative: expected its own model, got a {type(network).__name__}")
        return network


def levels_of(x: Array, data: ImageData, levels: int) -> Array:
    """Return normalised images as the nearest of M grey levels, int64, in their shape."""
    mean, std = data.moments
    pixels = x.astype(np.float64) * std + mean
    return np.rint(np.clip(pixels, 0.0, 1.0) * (levels - 1)).astype(np.int64)


def build_workload(config: Config, experiment: Experiment) -> Generative:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: the data is missing on this machine, or invalid.
        ConfigError: a member cannot take images of this size, or a client would have no examples.
    """
    return Generative(config, experiment)
