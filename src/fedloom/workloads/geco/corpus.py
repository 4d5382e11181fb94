"""The run's sentences as examples in rows, and clients with unequal shares of the versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.workloads._base.rows import Batch
from fedloom.workloads._data.partition import Partition
from fedloom.workloads._pretrained.text_model import Encoded, padded


@dataclass(frozen=True, slots=True)
class SentenceRows:
    """Sentences as token ids and mask, padded to the longest of a minibatch, and their versions."""

    encoded: Sequence[Encoded]
    versions: Array
    """(n,), int64."""
    pad_id: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.encoded)

    def batch(self, rows: Tensor) -> Batch:
        places = rows.cpu().numpy()
        ids, mask = padded([self.encoded[place].ids for place in places], self.pad_id, self.device)
        return (ids, mask), torch.from_numpy(self.versions[places]).to(self.device)


def balanced(versions: Array, shares: Sequence[float], clients: int, seed: int) -> Partition:
    """Deal sentences to clients of equal size, each with its own share of the second of two versions.

    As many sentences are dealt as the shares allow; the others are nobody's.

    Args:
        versions: 0 or 1, (n,).
        shares: client c has entry c modulo their number.
        clients: number of clients.
        seed: the experiment's.

    Raises:
        ConfigError: there are more than two versions, or too few sentences.
    """
    if versions.max(initial=0) > 1:
        raise ConfigError(
            f"workload.balance: needs sentences in two versions, got {versions.max() + 1}; use workload.partition"
        )
    each = np.array([shares[client % len(shares)] for client in range(clients)])
    pools = [generator(seed, "geco", "balance", kind).permutation(np.flatnonzero(versions == kind)) for kind in (0, 1)]
    wanted = np.array([(1.0 - each).sum(), each.sum()])
    size = int(min(len(pool) / want for pool, want in zip(pools, wanted, strict=True) if want > 0))
    if size < 1:
        raise ConfigError(
            f"workload.balance: {len(versions)} sentences are too few for {clients} clients; raise workload.data.pairs"
        )
    parts, used = [], [0, 0]
    for share in each:
        second = min(round(size * share), len(pools[1]) - used[1])
        counts = (min(size - second, len(pools[0]) - used[0]), second)
        rows = [pools[kind][used[kind] : used[kind] + counts[kind]] for kind in (0, 1)]
        used = [used[kind] + counts[kind] for kind in (0, 1)]
        parts.append(np.sort(np.concatenate(rows)).astype(np.int64))
    return Partition.of(parts)
