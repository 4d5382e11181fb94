"""Images of a run: training, validation and test images, and the style of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2, vq

from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.strategies.mano.workload.config import Config, StyleSettings
from fedloom.workloads._data import cache
from fedloom.workloads._data.images import ImageData
from fedloom.workloads._data.partition import Partition, partition

_ITERATIONS = 20
_SKETCH = 2000
"""Limit of images per class for finding its styles."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of the source's training images, and the styles of all images."""

    train: Array
    """Rows trained on, (n,), int64, rising."""
    validation: Array
    """Rows held back, likewise."""
    shards: Partition
    """Places in `train` by client."""
    test_styles: Array | None
    """Style of each test image, (m,), int64; the unseen ones are the highest numbers. None if there are none."""


def split(config: Config, data: ImageData, clients: int, seed: int) -> Split:
    """Draw training and validation rows, and partition the former among the clients.

    Raises:
        ConfigError: more images are requested than exist, a client has none, or values are not pixels.
    """
    data.check_pixels("mano")
    train_styles, test_styles = _styles(config.styles, data, seed) if config.styles.clusters else (None, None)
    usable = np.arange(len(data.y_train))
    if train_styles is not None:
        usable = usable[train_styles < config.styles.clusters - config.styles.unseen]
    order = usable[generator(seed, "mano", "rows").permutation(len(usable))]
    held_back = max(1, round(config.validation * len(order)))
    rest = order[held_back:]
    if config.train_examples is not None and config.train_examples > len(rest):
        raise ConfigError(
            f"workload.train_examples: {config.train_examples} requested, but {len(rest)} are left besides "
            f"{held_back} for validation; lower it, or workload.validation"
        )
    train = np.sort(rest[: config.train_examples])
    shards = partition(
        config.partition,
        data.y_train[train],
        data.groups[train] if data.groups is not None else None,
        clients=clients,
        seed=seed,
        data_sha256=cache.digest_of([data.sha256, "mano", seed, len(train), config.styles.model_dump()]),
    )
    return Split(train, np.sort(order[:held_back]), shards, test_styles)


def _styles(settings: StyleSettings, data: ImageData, seed: int) -> tuple[Array, Array]:
    """Return each image's style: its class's k-means cluster, numbered from the largest to the smallest."""
    train, test = (np.zeros(len(labels), np.int64) for labels in (data.y_train, data.y_test))
    for label in range(data.num_labels):
        rows, held = np.flatnonzero(data.y_train == label), np.flatnonzero(data.y_test == label)
        flat = data.x_train[rows].reshape(len(rows), -1).astype(np.float64)
        rng = generator(seed, "mano", "styles", label)
        centres, _ = kmeans2(flat[:_SKETCH], settings.clusters, iter=_ITERATIONS, minit="++", seed=rng)
        found = vq(flat, centres)[0]
        rank = np.argsort(np.argsort(-np.bincount(found, minlength=settings.clusters), kind="stable"))
        train[rows] = rank[found]
        if len(held):
            test[held] = rank[vq(data.x_test[held].reshape(len(held), -1).astype(np.float64), centres)[0]]
    return train, test
