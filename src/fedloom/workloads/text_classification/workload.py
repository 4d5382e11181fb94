"""Text classification: data, model and local training on an agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Array, Job, Metrics, Record, Update
from fedloom.workloads._adapters.targets import model_info
from fedloom.workloads._data import cache
from fedloom.workloads._data.partition import Partition, partition
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads._torch.trainer import Trainer, evaluate_in_batches
from fedloom.workloads.text_classification.body import BodyFolder, find_body, load_body, mean_pool
from fedloom.workloads.text_classification.config import Config
from fedloom.workloads.text_classification.features import FeatureStore
from fedloom.workloads.text_classification.tokens import TokenData, TokenSplit, load_tokens

_EVALUATION_BATCH = {"head": 1000, "all": 64}


class TextClassifier(nn.Module):
    """A head, and the body below it where that is trained too: the arrays that travel, no others."""

    def __init__(self, hidden_size: int, num_labels: int, body: nn.Module | None) -> None:
        super().__init__()
        if body is not None:
            self.body = body
        self.head = nn.Linear(hidden_size, num_labels)

    def of_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (b, labels) of texts given as ids and mask, both (b, t)."""
        logits: Tensor = self.head(mean_pool(self.body, ids, mask))
        return logits


class TextClassification:
    """Softmax classification of texts; cross-entropy averaged over the minibatch."""

    def __init__(
        self, config: Config, body: BodyFolder, data: TokenData, shards: Partition, device: torch.device
    ) -> None:
        self._config, self._body, self._data, self._shards, self._device = config, body, data, shards, device
        layers = config.model.layers
        identity = cache.digest_of([data.sha256, body.weights_sha256, *([] if layers is None else [layers])])
        self._features = FeatureStore(lambda: self._frozen_body, identity, device)
        with exact(device, seed=0):
            self._model = self._new_model()
            self._trainer = Trainer(self._model, config.training, device)

    def describe(self) -> WorkloadInfo:
        counts = self._shards.label_counts(self._data.train.labels, int(self._data.info["num_labels"]))
        frozen = self._config.model.train == "head"
        layers = {} if self._config.model.layers is None else {"layers": self._config.model.layers}
        body = {"name": self._body.name, **layers, "frozen": frozen, "weights_sha256": self._body.weights_sha256}
        return WorkloadInfo(
            data={**self._data.info, "body": body},
            client_sizes=self._shards.sizes.tolist(),
            label_counts=counts.tolist(),
            label_names=self._data.info["label_names"],
        )

    def init(self, rng: np.random.Generator) -> Record:
        with exact(torch.device("cpu"), seed=int(rng.integers(2**63))):
            model = self._new_model()
            fresh = Trainer(model, self._config.training, torch.device("cpu"))
        return Record({MODEL: fresh.arrays}, model_info(model, head=("head",)))

    def shard(self, client: int) -> RowShard:
        return RowShard(self._shards.client(client))

    def held_out(self, part: int, parts: int) -> RowShard:
        return RowShard.test_part(len(self._data.test.labels), part, parts)

    def train(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        logits_of, labels = self._logits(shard)

        def loss_of(places: Tensor) -> Tensor:
            return F.cross_entropy(logits_of(places), labels.index_select(0, places))

        return self._trainer.train(np.arange(len(shard.rows)), loss_of, inputs, rule, job.knobs, rng)

    def evaluate(self, inputs: Mapping[str, Record], shard: RowShard) -> Metrics:
        """`loss` (cross-entropy) and `accuracy` (share of right answers), on a test part or a client's own data."""
        if not shard.num_examples:
            return evaluate_in_batches(0, 1, lambda _: (), ("loss", "accuracy"))
        logits_of, labels = self._logits(shard)
        places = torch.arange(len(shard.rows), device=self._device)

        def measure(batch: slice) -> tuple[Tensor, Tensor]:
            logits, truth = logits_of(places[batch]), labels[batch]
            return F.cross_entropy(logits, truth, reduction="sum"), (logits.argmax(1) == truth).sum()

        with exact(self._device), torch.inference_mode():
            self._trainer.load(inputs)
            self._model.eval()
            size = _EVALUATION_BATCH[self._config.model.train]
            return evaluate_in_batches(len(places), size, measure, ("loss", "accuracy"))

    def logits(self, inputs: Mapping[str, Record], shard: RowShard) -> tuple[Array, Array]:
        """The global model's logits on a test part or a client's own data, (n, K) float32, and the labels, (n,)."""
        logits_of, labels = self._logits(shard)
        places = torch.arange(len(shard.rows), device=self._device)
        with exact(self._device), torch.inference_mode():
            self._trainer.load(inputs)
            self._model.eval()
            batches = torch.split(places, _EVALUATION_BATCH[self._config.model.train])
            return torch.cat([logits_of(batch) for batch in batches]).cpu().numpy(), labels.cpu().numpy()

    def _logits(self, shard: RowShard) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The shard's labels, and what gives the logits of some places in it."""
        split = self._data.test if shard.held_out else self._data.train
        labels = torch.from_numpy(split.labels[shard.rows]).to(self._device)
        if self._config.model.train == "head":
            features = self._features.features(split, "test" if shard.held_out else "train", shard.rows)
            return lambda places: self._model.head(features.index_select(0, places)), labels
        return lambda places: self._model.of_tokens(*self._tokens(split, shard.rows, places)), labels

    def _tokens(self, split: TokenSplit, rows: Array, places: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask = split.batch(rows[places.cpu().numpy()])
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)

    @cached_property
    def _frozen_body(self) -> nn.Module:
        """The pretrained body, loaded when a feature is first missing."""
        return load_body(self._body, self._config.model.layers).requires_grad_(False).to(self._device)

    def _new_model(self) -> TextClassifier:
        body = load_body(self._body, self._config.model.layers) if self._config.model.train == "all" else None
        return TextClassifier(self._body.hidden_size, int(self._data.info["num_labels"]), body)


def build_workload(config: Config, experiment: Experiment) -> TextClassification:
    """The workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: texts or body are not on this machine; the message says how to get them.
        ConfigError: the partition leaves a client without examples, or a GPU is asked for that is not there.
    """
    body = find_body(config.model.body)
    data = load_tokens(config.data, body, config.model.max_length)
    shards = partition(
        config.partition,
        data.train.labels,
        data.groups,
        clients=experiment.clients,
        seed=experiment.seed,
        data_sha256=data.sha256,
    )
    return TextClassification(config, body, data, shards, choose_device(config.training.device))
