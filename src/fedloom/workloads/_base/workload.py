"""The base class that workloads of fedloom and of users share."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from fedloom.core.protocols import Inputs
from fedloom.core.records import MODEL, Array, Arrays, Record
from fedloom.workloads._base.task import C, RowTask, minibatches
from fedloom.workloads._data.rows import RowShard


class TorchWorkload(RowTask[C]):
    """A `RowTask` whose outputs are one row of numbers for each example, such as a classifier's logits."""

    def logits(self, inputs: Inputs, shard: RowShard) -> tuple[Array, Array]:
        """Return the global model's outputs on a test part or a client's data, (n, K) float32, and the targets, (n,).

        For a classifier these are its logits and the classes.
        """
        source, rows = self.examples(shard)
        outputs, labels = [], []
        with self.evaluating(inputs):
            for batch in minibatches(rows, self.evaluation_batch, self.device):
                given, targets = source.batch(batch)
                outputs.append(self.outputs(self.network, *given))
                labels.append(targets)
            return torch.cat(outputs).float().cpu().numpy(), torch.cat(labels).cpu().numpy()

    def class_errors(self, arrays: Arrays, shard: RowShard, rng: np.random.Generator) -> Array:
        """Return the predicted gain of a client's examples for each class: the mean of onehot(y) - softmax, untrained.

        It is cross-entropy's negative gradient at the logits, float64 in [-1, 1], shape (classes,). Nothing is drawn.
        """
        source, rows = self.examples(shard)
        parts = []
        with self.evaluating({MODEL: Record({MODEL: arrays})}):
            for batch in minibatches(rows, self.evaluation_batch, self.device):
                given, targets = source.batch(batch)
                shares = self.outputs(self.network, *given).double().softmax(1)
                parts.append((F.one_hot(targets, shares.shape[1]) - shares).sum(0))
        return np.asarray(torch.stack(parts).sum(0).cpu().numpy() / shard.num_examples)
