"""Text classification: data, model and local training on an agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import Inputs, WorkloadInfo
from fedloom.core.records import Array
from fedloom.workloads._base.rows import Batch, RowData, RowSource, TensorRows
from fedloom.workloads._base.workload import TorchWorkload
from fedloom.workloads._data import cache
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._pretrained.text_model import TextModel, WordTokens, word_embedding
from fedloom.workloads._torch.scope import exact
from fedloom.workloads._torch.stored_dtype import stored_in
from fedloom.workloads.text_classification.body import find_body, load_body, mean_pool, pooled
from fedloom.workloads.text_classification.config import Config
from fedloom.workloads.text_classification.features import FeatureStore
from fedloom.workloads.text_classification.tokens import TokenSplit, load_tokens

_EVALUATION_BATCH = {"head": 1000, "all": 64}


class TextClassifier(nn.Module):
    """A head, and the body below it if that is trained too: only the arrays that are sent."""

    def __init__(self, hidden_size: int, num_labels: int, body: nn.Module | None) -> None:
        super().__init__()
        if body is not None:
            self.body = body
        self.head = nn.Linear(hidden_size, num_labels)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (b, labels) of features (b, hidden_size), or of texts given as ids and mask, both (b, t)."""
        features = inputs[0] if len(inputs) == 1 else mean_pool(self.body, *inputs)
        logits: Tensor = self.head(features)
        return logits


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Texts as ids and mask, padded to the longest of a minibatch."""

    split: TokenSplit
    device: torch.device

    def __len__(self) -> int:
        return len(self.split.labels)

    def batch(self, rows: Tensor) -> Batch:
        places = rows.cpu().numpy()
        ids, mask, labels = (
            torch.from_numpy(each).to(self.device) for each in (*self.split.batch(places), self.split.labels[places])
        )
        return (ids, mask), labels


class TextClassification(TorchWorkload[Config]):
    """Softmax classification of texts; cross-entropy averaged over the minibatch."""

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._body = find_body(config.model.body)
        self._tokens = load_tokens(config.data, self._body, config.model.max_length)
        self.evaluation_batch = _EVALUATION_BATCH[config.model.train]
        self.trains_adapters_only = config.model.dtype != "float32"
        super().__init__(config, experiment)
        layers = config.model.layers
        identity = [self.data.sha256, self._body.weights_sha256, *([] if layers is None else [layers])]
        self._features = FeatureStore(lambda: self._frozen_body, cache.digest_of(identity), self.device)

    def dataset(self) -> RowData:
        data = self._tokens
        return RowData(
            train=TokenRows(data.train, self.device),
            test=TokenRows(data.test, self.device),
            info=data.info,
            sha256=data.sha256,
            labels=data.train.labels,
            num_labels=int(data.info["num_labels"]),
            label_names=tuple(data.info["label_names"]),
            groups=data.groups,
        )

    def model(self) -> TextClassifier:
        body = load_body(self._body, self.config.model.layers) if self.config.model.train == "all" else None
        model = TextClassifier(self._body.hidden_size, int(self._tokens.info["num_labels"]), body)
        stored_in(model, self.config.model.dtype, "head")
        return model

    def describe(self) -> WorkloadInfo:
        info, model = super().describe(), self.config.model
        layers = {} if model.layers is None else {"layers": model.layers}
        weights = {"frozen": model.train == "head", "weights_sha256": self._body.weights_sha256}
        return replace(info, data={**info.data, "body": {"name": self._body.name, **layers, **weights}})

    def examples(self, shard: RowShard) -> tuple[RowSource, Array]:
        """Return texts; if the body is frozen, the shard's features, whose rows are indices in the shard."""
        if self.config.model.train == "all" or not shard.num_examples:
            return super().examples(shard)
        split = self._tokens.test if shard.held_out else self._tokens.train
        features = self._features.features(split, "test" if shard.held_out else "train", shard.rows)
        labels = torch.from_numpy(split.labels[shard.rows]).to(self.device)
        return TensorRows((features,), labels), np.arange(len(shard.rows))

    @contextmanager
    def text_models(self, inputs: Inputs) -> Iterator[Mapping[str, TextModel]]:
        """Load the global model and yield it, named `model`, as a function of its word vectors."""
        with exact(self.device):
            self.trainer.load(inputs)
            network = self.network.eval()
            body = (network.get_submodule("body") if self.config.model.train == "all" else self._frozen_body).eval()
            head = network.get_submodule("head")

            def logits(vectors: Tensor, mask: Tensor) -> Tensor:
                hidden = body(inputs_embeds=vectors, attention_mask=mask).last_hidden_state.float()
                found: Tensor = head(pooled(hidden, mask))
                return found

            tokens = WordTokens(self._body.tokenizer(), self.config.model.max_length)
            vectors, block = word_embedding(body), dict(body.named_children()).get("embeddings")
            yield {"model": TextModel(nn.ModuleList([body, head]), tokens, vectors, logits, block)}

    @cached_property
    def _frozen_body(self) -> nn.Module:
        """Return the pretrained body, loaded when a feature is first missing, or a decision is to be explained."""
        with torch.inference_mode(False):  # what an evaluation loads here can be differentiated later
            return load_body(self._body, self.config.model.layers).requires_grad_(False).to(self.device)


def build_workload(config: Config, experiment: Experiment) -> TextClassification:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: texts or body are missing on this machine; the message says how to get them.
        ConfigError: the partition leaves a client without examples, or a required GPU is missing.
    """
    return TextClassification(config, experiment)
