"""Shared by all workloads with a PyTorch model: data in rows, a partition of them, and a trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Generic, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.adapters.names import ADAPTERS
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import Action, Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, UNTRAINED, Array, Info, Job, Mean, Metrics, Record, Update
from fedloom.workloads._adapters.targets import model_info, output_layer
from fedloom.workloads._base.checks import (
    blamed,
    check_augmented,
    check_classes,
    check_labels,
    check_loss,
    check_methods,
    check_metrics,
    check_model,
    check_outputs,
    is_own,
    place_of,
)
from fedloom.workloads._base.classes import all_targets
from fedloom.workloads._base.examples import Found, Maker
from fedloom.workloads._base.forgetting import FORGET, forget
from fedloom.workloads._base.local import check_training, held_back, round_factor, weights_of
from fedloom.workloads._base.rows import RowData, RowSource, Shards
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition import Partition, partition
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import choose_device, computing, exact
from fedloom.workloads._torch.trainer import LocalTraining, Trainer

C = TypeVar("C", bound=TorchConfig)
CPU = torch.device("cpu")
_WITHOUT_CLASSES = ("iid", "size_skew", "natural")
"""Schemes of partitions that do not use classes."""


class RowTask(ABC, Generic[C]):
    """A model, examples in rows, and how the model is trained on them.

    `model` and `dataset` are required. Training minimises `loss`, evaluation adds up `metrics`; both are
    cross-entropy's by default.

    Args:
        config: the workload's settings.
        experiment: clients, seed and rounds.
    """

    evaluation_batch: int = 250
    """Examples in a forward pass without training. Changes the last bits of the metrics."""

    trains_adapters_only: bool = False
    """Whether the weights beneath adapters are too coarse to be trained themselves."""
    own_training: bool = False
    """Whether `train` computes its own loss instead of `loss`, so that settings which change the loss or hold
    examples back are refused."""

    def __new__(cls, *arguments: object, **settings: object) -> Self:
        if not is_own(cls):
            check_methods(cls, next(kind for kind in cls.__mro__ if is_own(kind)))
        return super().__new__(cls)

    def __init__(self, config: C, experiment: Experiment) -> None:
        self.config, self.experiment = config, experiment
        check_training(config.training, experiment, own_loss=self.own_training or self.has_own_loss)
        self.device = choose_device(config.training.device)
        self.data = load_rows(self)
        self.shards: Shards = partition_of(self) if self.data.shards is None else self.data.shards
        with exact(self.device, seed=0):
            self.trainer = self.new_trainer(build_model(self), self.device)
            if not is_own(type(self)):
                try_out(self)

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a new model, its weights drawn from torch's global generator."""

    @abstractmethod
    def dataset(self) -> Found:
        """Return the examples, see `Examples`; called once."""

    @property
    def has_own_loss(self) -> bool:
        """Return whether training minimises another loss than plain cross-entropy."""
        return has_own_loss(type(self))

    @property
    def data_place(self) -> str:
        """Return where the examples come from, for errors: file and line of `dataset`."""
        return place_of(type(self).dataset)

    def new_trainer(self, model: nn.Module, device: torch.device) -> Trainer:
        """Return a trainer with the settings."""
        return Trainer(model, self.config.training, device)

    def outputs(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return the model's output for a minibatch, (b, …)."""
        found: Tensor = model(*inputs)
        return found

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a minibatch, a tensor without dimensions; cross-entropy by default."""
        return F.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return an evaluation's metrics of a minibatch, each a sum over its `count` examples.

        By default `loss`, and if targets are classes `accuracy`, the fraction of correct predictions.
        """
        if has_own_loss(type(self)):
            loss = self.loss(outputs, targets) * self.count(targets)
        else:
            loss = F.cross_entropy(outputs, targets, reduction="sum")
        if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
            return {"loss": loss}
        return {"loss": loss, "accuracy": (outputs.argmax(1) == targets).sum()}

    def count(self, targets: Tensor) -> int:
        """Return the number a minibatch's metrics are summed over; its examples by default."""
        return len(targets)

    def prepared(self, inputs: object) -> object:
        """Return inputs that a user wants predictions for as arrays or tensors for the model; unchanged by default."""
        return inputs

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return predictions from outputs: the class of each example, or the outputs if targets are no classes."""
        return outputs.argmax(1) if self.data.num_labels and outputs.dim() == 2 else outputs

    def initial(self) -> nn.Module:
        """Return the model a run starts from; `model()` by default."""
        return self.model()

    def initial_info(self, model: nn.Module) -> Info:
        """Return facts about the model for strategies: the layers that can have adapters, and its head."""
        linear = any(isinstance(layer, nn.Linear) for layer in model.modules())
        return model_info(model, head=(output_layer(model)[0],) if linear else ())

    @property
    def network(self) -> nn.Module:
        """Return the model that is trained and evaluated here."""
        return self.trainer.model

    def describe(self) -> WorkloadInfo:
        data, shards = self.data, self.shards
        counted = len(data.label_names) > 0 and len(shards.sizes) > 0
        return WorkloadInfo(
            data={**data.info, **self._unassigned()},
            client_sizes=shards.sizes.tolist(),
            label_counts=shards.label_counts(data.labels, data.num_labels).tolist() if counted else (),
            label_names=data.label_names,
        )

    def _unassigned(self) -> Info:
        """Return the facts about the data that say how many examples the partition gives to no client, if any."""
        sizes = self.shards.sizes
        count = len(self.data.train) - int(sizes.sum()) if len(sizes) else 0
        if count <= 0:
            return {}
        scheme = self.config.partition.scheme
        what = "example" if count == 1 else "examples"
        more = f"{count:,} training {what} that workload.partition.scheme = {scheme!r} gives to no client"
        return {"left_out": [*self.data.info.get("left_out", ()), more]}

    def init(self, rng: np.random.Generator) -> Record:
        with exact(CPU, seed=int(rng.integers(2**63))):
            model = self.initial()
            fresh = self.new_trainer(model, CPU)
        untrained = fresh.untrained
        info = self.initial_info(model)
        return Record({MODEL: fresh.arrays}, {**info, UNTRAINED: untrained} if untrained else info)

    def shard(self, client: int) -> RowShard:
        return RowShard(self.shards.client(client))

    def held_out(self, part: int, parts: int) -> RowShard | None:
        test = self.data.test
        return None if test is None else RowShard.test_part(len(test), part, parts)

    def examples(self, shard: RowShard) -> tuple[RowSource, Array]:
        """Return the source of a shard's examples, and their rows in it, (n,), int64."""
        test = self.data.test if shard.held_out else None
        return self.data.train if test is None else test, shard.rows

    def train(
        self, job: Job, inputs: Inputs, shard: RowShard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        """Train one client; the metrics include the mean training `loss`."""
        if self.trains_adapters_only and ADAPTERS not in inputs[MODEL].info:
            raise ConfigError(
                f"strategy: {self.experiment.strategy.name!r} trains whole models, but workload.model.dtype stores the "
                'weights in 16 bits, too coarse for training. Set workload.model.dtype = "float32", or a strategy '
                "that trains adapters alone"
            )
        return self.trainer.train(inputs, self.local_training(self.trainer.model, job, shard, rule), rng)

    @property
    def actions(self) -> Mapping[str, Action]:
        """Return `forget`: training that makes the model forget a client (`_base.forgetting`).

        A subclass with actions of its own returns these, too.
        """
        return {FORGET: self._forget}

    def _forget(self, job: Job, inputs: Inputs, state: Record | None, rng: np.random.Generator) -> Update:
        return forget(self, job, inputs, rng)

    def local_training(self, model: nn.Module, job: Job, shard: RowShard, rule: LocalRule | None) -> LocalTraining:
        """Return a trainer's arguments for training a model on a shard."""
        settings, (source, rows) = self.config.training, self.examples(shard)
        kept, held = held_back(rows, settings, self.experiment.seed, job.client)
        criterion = self.loss
        if settings.changes_loss:
            weights = weights_of(settings, source, kept, self.data.num_labels, self.device)
            criterion = partial(F.cross_entropy, weight=weights, label_smoothing=settings.label_smoothing)

        def loss_of(batch: Tensor) -> Tensor:
            inputs, targets = source.batch(batch)
            return criterion(self.outputs(model, *self.augment(inputs)), targets)

        def validate() -> float:
            total, count = 0.0, 0
            with torch.no_grad(), computing(settings, self.device):
                for batch in minibatches(held, self.evaluation_batch, self.device):
                    inputs, targets = source.batch(batch)
                    total += float(self.loss(self.outputs(model, *inputs), targets)) * self.count(targets)
                    count += self.count(targets)
            return total / count

        return LocalTraining(
            rows=kept,
            loss_of=loss_of,
            rule=rule,
            knobs=job.knobs,
            factor=round_factor(settings, job.round, self.experiment),
            validate=validate if len(held) else None,
        )

    def augment(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return a training minibatch's inputs, changed at random (torch's global generator); unchanged by default."""
        return inputs

    @contextmanager
    def evaluating(self, inputs: Inputs) -> Iterator[None]:
        """Set `network` to the global model, in evaluation mode, in a reproducible scope without gradients."""
        with exact(self.device), torch.inference_mode(), computing(self.config.training, self.device):
            self.trainer.load(inputs)
            self.network.eval()
            yield

    def evaluate(self, inputs: Inputs, shard: RowShard) -> Metrics:
        """Return metrics of the global model on a test part or a client's own data; none if that is empty."""
        source, rows = self.examples(shard)
        sums: dict[str, float] = {}
        total = 0
        with self.evaluating(inputs):
            for batch in minibatches(rows, self.evaluation_batch, self.device):
                given, targets = source.batch(batch)
                for name, value in self.metrics(self.outputs(self.network, *given), targets).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                total += self.count(targets)
        return {name: Mean(value, float(total)) for name, value in sums.items()}


def minibatches(rows: Array, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """Cut rows into consecutive minibatches on a device; none without rows."""
    return torch.split(torch.from_numpy(rows).to(device), size) if len(rows) else ()


def has_own_loss(kind: type[RowTask[C]]) -> bool:
    """Return whether a workload minimises another loss than plain cross-entropy."""
    return kind.loss is not RowTask.loss


def load_rows(task: RowTask[C]) -> RowData:
    """Return a workload's examples as rows.

    Raises:
        PluginInvalid: what its `dataset` returns is none.
    """
    kind, experiment = type(task), task.experiment
    maker = Maker(task.device, experiment.num_clients, experiment.seed, kind.__name__, task.data_place)
    with blamed(kind, kind.dataset):
        data = maker.rows(task.dataset())
        if data.sha256 and not is_own(kind) and not has_own_loss(kind) and not len(data.labels):
            check_labels(all_targets(data.train), maker.where)
    return data


def partition_of(task: RowTask[C]) -> Partition:
    """Partition a workload's examples among the clients, by its settings.

    Raises:
        ConfigError: a client would have no example, or the scheme does not fit the data.
    """
    data, labels, scheme = task.data, task.data.labels, task.config.partition.scheme
    if not len(labels):
        if scheme not in _WITHOUT_CLASSES:
            raise ConfigError(
                f"workload.partition.scheme: {scheme!r} splits examples by class, but the targets are not classes. Set "
                f"one of {', '.join(_WITHOUT_CLASSES)}"
            )
        labels = np.zeros(len(data.train), np.int64)
    return partition(
        task.config.partition,
        labels,
        data.groups,
        clients=task.experiment.num_clients,
        seed=task.experiment.seed,
        data_sha256=data.sha256,
    )


def build_model(task: RowTask[C]) -> nn.Module:
    """Return a workload's model.

    Raises:
        PluginInvalid: it is none.
    """
    kind = type(task)
    with blamed(kind, kind.model):
        found = task.model()
    check_model(found, place_of(kind.model))
    return found


def try_out(task: RowTask[C]) -> None:
    """Compute loss and metrics of two examples, so that a mistake is found before the first round.

    Raises:
        PluginInvalid: there is one; the message says where.
    """
    kind, train = type(task), task.data.train
    if not task.data.sha256:  # each client's examples are loaded, and checked, where the client is
        return
    with blamed(kind, kind.dataset):
        inputs, targets = train.batch(torch.arange(min(2, len(train)), device=task.device))
    with blamed(kind, kind.augment):
        check_augmented(task.augment(inputs), inputs, place_of(kind.augment))
    task.network.eval()
    shapes = ", ".join(f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in inputs)
    with blamed(kind, kind.model, f" called with {shapes}"):
        outputs = check_outputs(task.outputs(task.network, *inputs), len(targets), place_of(kind.model))
    if not has_own_loss(kind):
        check_classes(outputs, max(task.data.num_labels, 1), place_of(kind.model))
    with blamed(kind, kind.loss):
        check_loss(task.loss(outputs, targets), place_of(kind.loss))
    with blamed(kind, kind.metrics):
        check_metrics(task.metrics(outputs.detach(), targets), place_of(kind.metrics))
