"""Causal language modelling: data, model and local training on an agent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.core.config import Experiment
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Array, Job, Mean, Metrics, Record, Update
from fedloom.workloads._adapters.targets import model_info
from fedloom.workloads._data.partition import Partition, partition
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads._pretrained.folder import PretrainedFolder
from fedloom.workloads._torch.scope import choose_device, exact
from fedloom.workloads._torch.trainer import Trainer
from fedloom.workloads.causal_lm.blocks import NO_TARGET, BlockData, Blocks, load_blocks
from fedloom.workloads.causal_lm.config import Config
from fedloom.workloads.causal_lm.model import find_model, load_model

_EVALUATION_TOKENS = 2048
"""Tokens of an evaluation's minibatch: its logits take this many times the vocabulary."""
_MOST_FILES = 100
"""Files up to which the report can show who holds blocks of which."""


class CausalLM:
    """Next-token prediction; cross-entropy averaged over the tokens of the minibatch."""

    def __init__(
        self, config: Config, folder: PretrainedFolder, data: BlockData, shards: Partition, device: torch.device
    ) -> None:
        self._config, self._folder, self._data, self._shards, self._device = config, folder, data, shards, device
        with exact(device, seed=0):
            self._model = load_model(folder)
            self._trainer = Trainer(self._model, config.training, device)

    def describe(self) -> WorkloadInfo:
        names = self._data.names if len(self._data.names) <= _MOST_FILES else ()
        checkpoint = {"name": self._folder.name, "weights_sha256": self._folder.weights_sha256}
        return WorkloadInfo(
            data={**self._data.info, "checkpoint": checkpoint},
            client_sizes=self._shards.sizes.tolist(),
            label_counts=self._shards.label_counts(self._data.files, len(names)).tolist() if names else (),
            label_names=names,
            exponentials={"perplexity": "loss"},
        )

    def init(self, rng: np.random.Generator) -> Record:
        """The pretrained weights; nothing is drawn."""
        model = load_model(self._folder)
        fresh = Trainer(model, self._config.training, torch.device("cpu"))
        return Record({MODEL: fresh.arrays}, model_info(model))

    def shard(self, client: int) -> RowShard:
        return RowShard(self._shards.client(client))

    def held_out(self, part: int, parts: int) -> RowShard:
        return RowShard.test_part(len(self._data.test.lengths), part, parts)

    def train(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        shard: RowShard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        def loss_of(rows: Tensor) -> Tensor:
            logits, truth = self._predicted(self._data.train, rows.cpu().numpy())
            return F.cross_entropy(logits, truth, ignore_index=NO_TARGET)

        return self._trainer.train(shard.rows, loss_of, inputs, rule, job.knobs, rng)

    def evaluate(self, inputs: Mapping[str, Record], shard: RowShard) -> Metrics:
        """`loss` (cross-entropy of a token, nats) and `accuracy` (share of tokens guessed rightly), over all tokens."""
        blocks = self._data.test if shard.held_out else self._data.train
        size = max(1, _EVALUATION_TOKENS // self._config.model.block_size)
        sums, tokens = np.zeros(2), 0
        with exact(self._device), torch.inference_mode():
            self._trainer.load(inputs)
            self._model.eval()
            for start in range(0, len(shard.rows), size):
                logits, truth = self._predicted(blocks, shard.rows[start : start + size])
                loss = F.cross_entropy(logits, truth, ignore_index=NO_TARGET, reduction="sum")
                sums += [float(loss), float((logits.argmax(1) == truth).sum())]
                tokens += int((truth != NO_TARGET).sum())
        return {name: Mean(float(value), float(tokens)) for name, value in zip(("loss", "accuracy"), sums, strict=True)}

    def _predicted(self, blocks: Blocks, rows: Array) -> tuple[Tensor, Tensor]:
        """Logits (n, vocabulary) for each token of some blocks but their first, and those tokens (n,)."""
        ids, labels = (torch.from_numpy(each).to(self._device) for each in blocks.batch(rows))
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def build_workload(config: Config, experiment: Experiment) -> CausalLM:
    """The workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: texts or checkpoint are not on this machine; the message says how to get them.
        ConfigError: the checkpoint is no causal language model, or the partition leaves a client without examples.
    """
    folder = find_model(config.model.checkpoint, config.model.block_size)
    data = load_blocks(config.data, folder, config.model.block_size)
    shards = partition(
        config.partition,
        data.files,
        data.files,
        clients=experiment.clients,
        seed=experiment.seed,
        data_sha256=data.sha256,
    )
    return CausalLM(config, folder, data, shards, choose_device(config.training.device))
