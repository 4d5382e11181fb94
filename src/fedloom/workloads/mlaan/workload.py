"""Local learning on an agent: data, the modes' networks, training of a client's modules, evaluation of each mode."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import Info, Job, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator
from fedloom.workloads._base.images import image_rows
from fedloom.workloads._base.rows import RowData, TensorRows
from fedloom.workloads._base.task import minibatches
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._data import cache
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._vision.augment import augment_images
from fedloom.workloads.mlaan.auxiliary import Plan
from fedloom.workloads.mlaan.config import Config
from fedloom.workloads.mlaan.costs import Costs, measure
from fedloom.workloads.mlaan.learner import Contest, Learner, Nets

_CPU = torch.device("cpu")


class LocalLearning(TorchWorkload[Config]):
    """Learning module by module; a client's auxiliary networks, averages and momentum are stored between rounds."""

    keeps_client_state = True
    own_training = True

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._images = load_images(config.data)
        if any(mode.base == "infopro" for mode in config.parsed_modes):
            self._images.check_pixels("mlaan")
        self._plan = Plan(
            config=config, shape=self._images.shape, classes=self._images.num_labels, seed=experiment.seed
        )
        super().__init__(config, experiment)
        moments = (torch.from_numpy(each).to(self.device) for each in self._images.moments)
        self._mean, self._std = moments
        self.learner = functools.cache(self._learner)
        self.costs = functools.cache(self._costs)

    def dataset(self) -> RowData:
        data, count = self._images, self.config.train_examples
        x, y = data.x_train, data.y_train
        if count is not None and count < len(y):
            rows = np.sort(generator(self.experiment.seed, "mlaan", "examples").permutation(len(y))[:count])
            x, y = np.ascontiguousarray(x[rows]), y[rows]
            groups = None if data.groups is None else data.groups[rows]
            drawn = cache.digest_of([data.sha256, count, self.experiment.seed])
            data = replace(data, x_train=x, y_train=y, groups=groups, sha256=drawn)
        train = TensorRows.of(x, y, self.device)
        return image_rows(data, train, TensorRows.of(data.x_test, data.y_test, self.device))

    def model(self) -> nn.Module:
        sends_all = self.config.auxiliary == "sent"
        return Contest(self._plan, (0, self.config.num_modules)) if sends_all else Nets(self._plan)

    def initial_info(self, model: nn.Module) -> Info:
        return {}

    def describe(self) -> WorkloadInfo:
        info, config = super().describe(), self.config
        trains = [config.range_of(client)[1] > 0 for client in range(self.experiment.num_clients)]
        if all(trains):
            return info
        return replace(
            info,
            client_sizes=[size * share for size, share in zip(info.client_sizes, trains, strict=True)],
            label_counts=[[n * share for n in row] for row, share in zip(info.label_counts, trains, strict=True)],
        )

    def shard(self, client: int) -> RowShard:
        """Return a client's examples; none for one that trains no module."""
        shard = super().shard(client)
        return shard if self.config.range_of(client)[1] else RowShard(shard.rows[:0])

    def augment(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        settings = self.config.augment
        return tuple(augment_images(each, settings) for each in inputs) if settings.changes else inputs

    def train(
        self,
        job: Job,
        inputs: Inputs,
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:
        """Train a client's modules; metrics are the training `loss` and the peak of its `activation_bytes`."""
        trained = self.config.range_of(job.client)
        learner, seconds = self.learner(*trained), dict[str, float]()
        source, _ = self.examples(shard)

        def loss_of(rows: Tensor) -> Tensor:
            given, y = source.batch(rows)
            (x,) = self.augment(given)
            return learner.gradients(x, y, seconds)

        local = replace(self.local_training(learner.contest, job, shard, rule), loss_of=loss_of)
        update = learner.train(inputs, local, state, rng)
        if not update.metrics:
            return update
        batch = min(self.config.training.batch_size, len(shard.rows))
        peak = max(each.activation_bytes for each in self.costs(*trained, batch).values())
        metrics = {**update.metrics, "activation_bytes": Mean(float(peak), 1.0)}
        return replace(update, metrics=metrics, info={"seconds": seconds})

    def evaluate(self, inputs: Inputs, shard: RowShard, state: Record | None = None) -> Metrics:
        """Return each mode's `accuracy`, `loss` and bytes, with the mode's name behind if there are several.

        `accuracy` and the others without a name are the last mode's. Bytes are those of a client that trains all
        modules with full minibatches.
        """
        source, rows = self.examples(shard)
        sums = {name: np.zeros(2) for name in self.config.modes}
        with self.evaluating(inputs):
            for batch in minibatches(rows, self.evaluation_batch, self.device):
                (x,), y = source.batch(batch)
                for name, net in self._nets().items():
                    logits = net(x)
                    right = (logits.argmax(1) == y).sum()
                    sums[name] += float(right), float(F.cross_entropy(logits, y, reduction="sum"))
        weight, metrics = float(len(rows)), dict[str, Mean]()
        costs = self.costs(0, self.config.num_modules, self.config.training.batch_size)
        for name in self.config.modes:
            accuracy, loss = sums[name]
            found = {"accuracy": Mean(accuracy, weight), "loss": Mean(loss, weight)}
            for key, value in _bytes(costs[name]).items():
                found[key] = Mean(value * weight, weight)
            metrics |= found
            if len(self.config.modes) > 1:
                metrics |= {f"{key}_{name}": value for key, value in found.items()}
        return metrics

    def _nets(self) -> dict[str, nn.Module]:
        network = self.network
        return dict(network.nets) if isinstance(network, Nets) else {}

    def _learner(self, first: int, stop: int) -> Learner:
        return Learner(self._plan, (first, stop), self.device, self._pixels)

    def _costs(self, first: int, stop: int, batch_size: int) -> dict[str, Costs]:
        with torch.inference_mode(False), torch.enable_grad(), exact(_CPU, seed=0):
            return measure(self._plan, (first, stop), batch_size)

    def _pixels(self, x: Tensor) -> Tensor:
        return (x * self._std + self._mean).clamp(0.0, 1.0)


def _bytes(costs: Costs) -> dict[str, float]:
    return {
        "activation_bytes": float(costs.activation_bytes),
        "parameter_bytes": float(costs.parameter_bytes),
        "optimizer_bytes": float(costs.optimizer_bytes),
    }


def build_workload(config: Config, experiment: Experiment) -> LocalLearning:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: the data is missing on this machine, or invalid.
        ConfigError: the partition leaves a client without examples, or a required GPU is missing.
    """
    return LocalLearning(config, experiment)
