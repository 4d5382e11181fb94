"""What all workloads with a PyTorch model share: data in rows, a partition of them, and a trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Array, Info, Job, Mean, Metrics, Record, Update
from fedloom.workloads._adapters.targets import model_info, output_layer
from fedloom.workloads._base.rows import RowData, RowSource
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.partition import Partition, partition
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads._torch.trainer import LocalTraining, Trainer

C = TypeVar("C", bound=TorchConfig)
CPU = torch.device("cpu")


class RowTask(ABC, Generic[C]):
    """A model, examples in rows, and how the one learns from the other.

    `model` and `dataset` are required. Training minimises `loss`, evaluation adds up `metrics`; both are
    cross-entropy's by default.

    Args:
        config: the workload's settings.
        experiment: clients, seed and rounds.
    """

    evaluation_batch: int = 250
    """Examples in a forward pass that trains nothing. Part of the metrics' last bits."""

    def __init__(self, config: C, experiment: Experiment) -> None:
        self.config, self.experiment = config, experiment
        self.device = choose_device(config.training.device)
        self.data = self.dataset()
        self.shards = self.data.shards or self._dealt(self.data)
        with exact(self.device, seed=0):
            self.trainer = Trainer(self.model(), config.training, self.device)

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a new model, its weights drawn from torch's global generator."""

    @abstractmethod
    def dataset(self) -> RowData:
        """Return the examples; called once."""

    def outputs(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return what the model says of a minibatch, (b, …)."""
        found: Tensor = model(*inputs)
        return found

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a minibatch, a tensor without dimensions; cross-entropy by default."""
        return F.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return an evaluation's metrics of a minibatch, each summed over its `count`."""
        return {
            "loss": F.cross_entropy(outputs, targets, reduction="sum"),
            "accuracy": (outputs.argmax(1) == targets).sum(),
        }

    def count(self, targets: Tensor) -> int:
        """Return how many things a minibatch's metrics are summed over; its examples by default."""
        return len(targets)

    def initial(self) -> nn.Module:
        """Return the model a run starts from; `model()` by default."""
        return self.model()

    def initial_info(self, model: nn.Module) -> Info:
        """Return what strategies need to know of the model: which layers can carry adapters, which are its head."""
        linear = any(isinstance(layer, nn.Linear) for layer in model.modules())
        return model_info(model, head=(output_layer(model)[0],) if linear else ())

    @property
    def network(self) -> nn.Module:
        """The model that is trained and evaluated here."""
        return self.trainer.model

    def describe(self) -> WorkloadInfo:
        data, shards = self.data, self.shards
        counted = len(data.label_names) > 0
        return WorkloadInfo(
            data=data.info,
            client_sizes=shards.sizes.tolist(),
            label_counts=shards.label_counts(data.labels, data.num_labels).tolist() if counted else (),
            label_names=data.label_names,
        )

    def init(self, rng: np.random.Generator) -> Record:
        with exact(CPU, seed=int(rng.integers(2**63))):
            model = self.initial()
            fresh = Trainer(model, self.config.training, CPU)
        return Record({MODEL: fresh.arrays}, self.initial_info(model))

    def shard(self, client: int) -> RowShard:
        return RowShard(self.shards.client(client))

    def held_out(self, part: int, parts: int) -> RowShard | None:
        test = self.data.test
        return None if test is None else RowShard.test_part(len(test), part, parts)

    def examples(self, shard: RowShard) -> tuple[RowSource, Array]:
        """Return where a shard's examples are, and their rows there, (n,), int64."""
        test = self.data.test if shard.held_out else None
        return self.data.train if test is None else test, shard.rows

    def train(
        self, job: Job, inputs: Inputs, shard: RowShard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        """Train one client; the metrics hold the mean training `loss`."""
        return self.trainer.train(inputs, self.local_training(self.trainer.model, job, shard, rule), rng)

    def local_training(self, model: nn.Module, job: Job, shard: RowShard, rule: LocalRule | None) -> LocalTraining:
        """Return what a trainer needs to train a model on a shard."""
        source, rows = self.examples(shard)

        def loss_of(batch: Tensor) -> Tensor:
            inputs, targets = source.batch(batch)
            return self.loss(self.outputs(model, *self.augment(inputs)), targets)

        return LocalTraining(rows=rows, loss_of=loss_of, rule=rule, knobs=job.knobs)

    def augment(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return a training minibatch's inputs, changed at random (torch's global generator); unchanged by default."""
        return inputs

    def evaluate(self, inputs: Inputs, shard: RowShard) -> Metrics:
        """Metrics of the global model on a test part or a client's own data; none where that is empty."""
        source, rows = self.examples(shard)
        sums: dict[str, float] = {}
        total = 0
        with exact(self.device), torch.inference_mode():
            self.trainer.load(inputs)
            self.network.eval()
            for batch in self._batches(rows):
                given, targets = source.batch(batch)
                for name, value in self.metrics(self.outputs(self.network, *given), targets).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                total += self.count(targets)
        return {name: Mean(value, float(total)) for name, value in sums.items()}

    def _batches(self, rows: Array) -> tuple[Tensor, ...]:
        """Rows cut into minibatches of an evaluation; none where there are none."""
        return torch.split(torch.from_numpy(rows).to(self.device), self.evaluation_batch) if len(rows) else ()

    def _dealt(self, data: RowData) -> Partition:
        """The rows dealt to the clients as the settings say."""
        experiment = self.experiment
        return partition(
            self.config.partition,
            data.labels,
            data.groups,
            clients=experiment.clients,
            seed=experiment.seed,
            data_sha256=data.sha256,
        )
