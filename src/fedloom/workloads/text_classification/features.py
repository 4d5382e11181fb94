"""Features of a frozen body: computed once per shard, stored on disk, mapped by every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.core.records import Array
from fedloom.workloads._data import cache
from fedloom.workloads._torch.scope import exact
from fedloom.workloads.text_classification.body import mean_pool
from fedloom.workloads.text_classification.tokens import TokenSplit

_FORMAT = 1
_BATCH = 64


class FeatureStore:
    """Pooled features of shards.

    A shard is the unit because the last bits of a feature depend on which texts share its batch: made from the shard
    alone, they are the same whichever process makes them, in whatever order.
    """

    def __init__(self, body: Callable[[], nn.Module], identity: str, device: torch.device) -> None:
        """Store features of one body.

        Args:
            body: returns the body; called only when a feature is missing.
            identity: digest of the texts and of everything in the body that affects a feature.
            device: the device of the body.
        """
        self._body, self._device = body, device
        self._identity = f"{_FORMAT}:{identity}:{torch.__version__}:{device.type}"
        self._open: dict[str, Tensor] = {}

    def features(self, split: TokenSplit, name: str, rows: Array) -> Tensor:
        """Return features of some texts of a split, shape (n, hidden_size), float32, in the rows' order."""
        row_digest = hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()
        key = cache.digest_of([self._identity, name, row_digest])
        if key not in self._open:

            def build(folder: Path) -> None:
                np.save(folder / "features.npy", self._compute(split, rows))

            mapped = cache.map_array(cache.entry("features", key, build) / "features.npy")
            self._open[key] = torch.from_numpy(np.asarray(mapped)).to(self._device)
        return self._open[key]

    def _compute(self, split: TokenSplit, rows: Array) -> Array:
        """Compute features, the shortest texts first, so that little is padding."""
        by_length = np.argsort(split.lengths(rows), kind="stable")
        parts = []
        with exact(self._device), torch.inference_mode():
            body = self._body().eval()
            for start in range(0, len(rows), _BATCH):
                ids, mask = split.batch(rows[by_length[start : start + _BATCH]])
                pooled = mean_pool(
                    body, torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)
                )
                parts.append(pooled.cpu().numpy())
        features = np.concatenate(parts)
        result = np.empty_like(features)
        result[by_length] = features
        return result
