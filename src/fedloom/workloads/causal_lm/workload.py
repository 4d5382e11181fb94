"""Causal language modelling: data, model and local training on an agent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedloom.core.config import Experiment
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Info
from fedloom.workloads._adapters.targets import model_info
from fedloom.workloads._base.rows import Batch, RowData
from fedloom.workloads._base.task import RowTask
from fedloom.workloads.causal_lm.blocks import NO_TARGET, Blocks, load_blocks
from fedloom.workloads.causal_lm.config import Config
from fedloom.workloads.causal_lm.model import find_model, load_model

_EVALUATION_TOKENS = 2048
"""Tokens of an evaluation's minibatch: its logits take this many times the vocabulary."""
_MOST_FILES = 100
"""Limit of files for which the report can show the partition."""


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Blocks of tokens, cut to the longest of a minibatch; the targets are all tokens but each block's first."""

    blocks: Blocks
    device: torch.device

    def __len__(self) -> int:
        return len(self.blocks.lengths)

    def batch(self, rows: Tensor) -> Batch:
        ids, labels = (torch.from_numpy(each).to(self.device) for each in self.blocks.batch(rows.cpu().numpy()))
        return (ids,), labels[:, 1:].flatten()


class CausalLM(RowTask[Config]):
    """Next-token prediction; cross-entropy averaged over the tokens of the minibatch."""

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self._folder = find_model(config.model.checkpoint, config.model.block_size)
        self._texts = load_blocks(config.data, self._folder, config.model.block_size)
        self.evaluation_batch = max(1, _EVALUATION_TOKENS // config.model.block_size)
        self.trains_adapters_only = config.model.dtype != "float32"
        super().__init__(config, experiment)

    def dataset(self) -> RowData:
        data = self._texts
        names = data.names if len(data.names) <= _MOST_FILES else ()
        return RowData(
            train=BlockRows(data.train, self.device),
            test=BlockRows(data.test, self.device),
            info=data.info,
            sha256=data.sha256,
            labels=data.files,
            num_labels=len(data.names),
            label_names=names,
            groups=data.files,
        )

    def model(self) -> nn.Module:
        """Return the model with pretrained weights; nothing is drawn."""
        return load_model(self._folder, self.config.model.dtype)

    def initial_info(self, model: nn.Module) -> Info:
        return model_info(model)

    def outputs(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Logits (n, vocabulary) for each token of some blocks but their first."""
        (ids,) = inputs
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits[:, :-1].flatten(0, 1)

    def count(self, targets: Tensor) -> int:
        """Return the number of tokens to predict: the metrics are `loss` (nats) and `accuracy` of a token."""
        return int((targets != NO_TARGET).sum())

    def describe(self) -> WorkloadInfo:
        info = super().describe()
        checkpoint = {"name": self._folder.name, "weights_sha256": self._folder.weights_sha256}
        return replace(info, data={**info.data, "checkpoint": checkpoint}, exponentials={"perplexity": "loss"})


def build_workload(config: Config, experiment: Experiment) -> CausalLM:
    """Return the workload a `Config` describes, for the experiment's clients and seed.

    Raises:
        DataMissing: texts or checkpoint are missing on this machine; the message says how to get them.
        ConfigError: the checkpoint is not a causal language model, or the partition leaves a client without examples.
    """
    return CausalLM(config, experiment)
