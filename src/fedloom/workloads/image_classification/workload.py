"""Image classification: data, model and local training on an agent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Array, Arrays, Job, Metrics, Record, Update
from fedloom.workloads._adapters.targets import model_info, output_layer
from fedloom.workloads._data.images import ImageData, load_images
from fedloom.workloads._data.partition import Partition, partition
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._pretrained.folder import PretrainedFolder
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads._torch.trainer import Trainer, evaluate_in_batches
from fedloom.workloads._vision.checkpoint import Checkpoint
from fedloom.workloads._vision.hub_model import build_hub_model, find_hub_model
from fedloom.workloads._vision.models import build_model
from fedloom.workloads.image_classification.config import Config, Model

_EVALUATION_BATCH = 250
"""Small enough for a CNN's activations to stay in a core's cache: a third faster than 1000."""


class ImageClassification:
    """Softmax classification of images; cross-entropy averaged over the minibatch."""

    def __init__(
        self,
        config: Config,
        data: ImageData,
        shards: Partition,
        device: torch.device,
        pretrained: Checkpoint | PretrainedFolder | None = None,
    ) -> None:
        self._config, self._data, self._shards, self._device = config, data, shards, device
        self._pretrained = pretrained
        x_train, y_train, x_test, y_test = (
            torch.from_numpy(array).to(device) for array in (data.x_train, data.y_train, data.x_test, data.y_test)
        )
        self._train, self._test = (x_train, y_train), (x_test, y_test)
        with exact(device, seed=0):
            self._trainer = Trainer(self._new_model(), config.training, device)

    def describe(self) -> WorkloadInfo:
        counts = self._shards.label_counts(self._data.y_train, self._data.num_labels)
        found = self._pretrained
        pretrained = found and {"name": self._config.model.pretrained, "weights_sha256": found.weights_sha256}
        return WorkloadInfo(
            data={**self._data.info, "pretrained": pretrained} if pretrained else self._data.info,
            client_sizes=self._shards.sizes.tolist(),
            label_counts=counts.tolist(),
            label_names=self._data.info["label_names"],
        )

    def init(self, rng: np.random.Generator) -> Record:
        with exact(torch.device("cpu"), seed=int(rng.integers(2**63))):
            model = self._new_model()
            self._set_out(model)
            fresh = Trainer(model, self._config.training, torch.device("cpu"))
        return Record({MODEL: fresh.arrays}, model_info(model, head=(output_layer(model)[0],)))

    def shard(self, client: int) -> RowShard:
        return RowShard(self._shards.client(client))

    def held_out(self, part: int, parts: int) -> RowShard:
        return RowShard.test_part(len(self._test[1]), part, parts)

    def train(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        return self._trainer.train(shard.rows, self._loss, inputs, rule, job.knobs, rng)

    def evaluate(self, inputs: Mapping[str, Record], shard: RowShard) -> Metrics:
        """`loss` (cross-entropy) and `accuracy` (share of right answers), on a test part or a client's own data."""
        images, labels = self._test if shard.held_out else self._train
        rows = torch.from_numpy(shard.rows).to(self._device)

        def measure(batch: slice) -> tuple[Tensor, Tensor]:
            truth = labels.index_select(0, rows[batch])
            logits = self._trainer.model(images.index_select(0, rows[batch]))
            return F.cross_entropy(logits, truth, reduction="sum"), (logits.argmax(1) == truth).sum()

        with exact(self._device), torch.inference_mode():
            self._trainer.load(inputs)
            self._trainer.model.eval()
            return evaluate_in_batches(len(rows), _EVALUATION_BATCH, measure, ("loss", "accuracy"))

    def logits(self, inputs: Mapping[str, Record], shard: RowShard) -> tuple[Array, Array]:
        """The global model's logits on a test part or a client's own data, (n, K) float32, and the labels, (n,)."""
        images, labels = self._test if shard.held_out else self._train
        rows = torch.from_numpy(shard.rows).to(self._device)
        with exact(self._device), torch.inference_mode():
            self._trainer.load(inputs)
            self._trainer.model.eval()
            parts = [self._trainer.model(images.index_select(0, part)) for part in torch.split(rows, _EVALUATION_BATCH)]
            return torch.cat(parts).cpu().numpy(), labels.index_select(0, rows).cpu().numpy()

    def class_errors(self, arrays: Arrays, shard: RowShard, rng: np.random.Generator) -> Array:
        """What a client's examples would teach each class's output: the mean of onehot(y) - softmax, without training.

        It is the loss's negative gradient at the logits, float64 in [-1, 1], shape (classes,). Nothing is drawn.
        """
        images, labels = self._train
        parts = []
        with exact(self._device), torch.inference_mode():
            self._trainer.load({MODEL: Record({MODEL: arrays})})
            self._trainer.model.eval()
            for rows in torch.split(torch.from_numpy(shard.rows).to(self._device), _EVALUATION_BATCH):
                shares = self._trainer.model(images.index_select(0, rows)).double().softmax(1)
                hot = F.one_hot(labels.index_select(0, rows), shares.shape[1])
                parts.append((hot - shares).sum(0))
        return np.asarray(torch.stack(parts).sum(0).cpu().numpy() / shard.num_examples)

    def _loss(self, rows: Tensor) -> Tensor:
        images, labels = self._train
        return F.cross_entropy(self._trainer.model(images.index_select(0, rows)), labels.index_select(0, rows))

    def _new_model(self) -> nn.Module:
        if isinstance(self._pretrained, PretrainedFolder):
            return build_hub_model(self._pretrained, self._data.shape, self._data.num_labels)
        return build_model(self._config.model, self._data.shape, self._data.num_labels)

    def _set_out(self, model: nn.Module) -> None:
        """Give a new model the weights a run starts from."""
        fresh_head = self._config.model.fresh_head
        if isinstance(self._pretrained, Checkpoint):
            self._pretrained.load_into(model, fresh_head=fresh_head)
        elif fresh_head:
            output_layer(model)[1].reset_parameters()


def build_workload(config: Config, experiment: Experiment) -> ImageClassification:
    """The workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: data or pretrained weights are not on this machine, or not what they should be.
        ConfigError: the partition leaves a client without examples, or a GPU is asked for that is not there.
    """
    pretrained = _pretrained(config.model)
    data = load_images(config.data, config.resize, config.channels)
    shards = partition(
        config.partition,
        data.y_train,
        data.groups,
        clients=experiment.clients,
        seed=experiment.seed,
        data_sha256=data.sha256,
    )
    return ImageClassification(config, data, shards, choose_device(config.training.device), pretrained)


def _pretrained(model: Model) -> Checkpoint | PretrainedFolder | None:
    """Where the first weights come from; None where they are random."""
    if model.pretrained is None:
        return None
    return find_hub_model(model.pretrained) if model.transformers else Checkpoint.find(model.pretrained)
