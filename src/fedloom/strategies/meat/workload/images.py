"""The images a run works on, as tensors of pixels from 0 to 1: training, validation, test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.strategies.meat.workload.config import Config
from fedloom.workloads._base.rows import Batch
from fedloom.workloads._data import cache
from fedloom.workloads._data.images import ImageData
from fedloom.workloads._data.partition import Partition, partition


@dataclass(frozen=True, slots=True)
class Pixels:
    """Images (n, c, h, w), float32 in [0, 1], and labels (n,), int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, rows: Tensor) -> Batch:
        """Return some images and their labels."""
        return (self.x.index_select(0, rows),), self.y.index_select(0, rows)

    def part(self, part: int, parts: int) -> Pixels:
        """Part `part` of `parts` consecutive pieces."""
        start, stop = (len(self) * edge // parts for edge in (part, part + 1))
        return Pixels(self.x[start:stop], self.y[start:stop])

    def first(self, count: int) -> Pixels:
        """Return the first `count` images, or all if there are fewer."""
        return Pixels(self.x[:count], self.y[:count])


@dataclass(frozen=True, slots=True)
class Images:
    """The data of a run."""

    train: Pixels
    validation: Pixels
    test: Pixels
    shards: Partition
    """Rows of `train` by client."""


def prepare(config: Config, data: ImageData, clients: int, seed: int, device: torch.device) -> Images:
    """Draw the training and validation images, and partition the former among the clients.

    Raises:
        ConfigError: more images are requested than exist, a client has none, or values are not pixels.
    """
    data.check_pixels("meat")
    total = len(data.y_train)
    wanted = total if config.train_examples is None else config.train_examples
    held_back = round(config.validation * wanted)
    if wanted + (held_back if config.train_examples else 0) > total:
        raise ConfigError(
            f"workload.train_examples: {wanted} for training and {held_back} for validation, but the data has {total}"
        )
    order = generator(seed, "meat", "rows").permutation(total)
    used = order[: wanted + held_back] if config.train_examples else order
    validation_rows, train_rows = np.sort(used[:held_back]), np.sort(used[held_back:])
    labels = data.y_train[train_rows]
    shards = partition(
        config.partition,
        labels,
        data.groups[train_rows] if data.groups is not None else None,
        clients=clients,
        seed=seed,
        data_sha256=cache.digest_of([data.sha256, seed, wanted, held_back]),
    )
    noise = generator(seed, "meat", "labels")
    return Images(
        train=_pixels(data, data.x_train[train_rows], _mislabelled(labels, config.label_noise, data, noise), device),
        validation=_pixels(data, data.x_train[validation_rows], data.y_train[validation_rows], device),
        test=_pixels(data, data.x_test, data.y_test, device),
        shards=shards,
    )


def _mislabelled(labels: Array, share: float, data: ImageData, rng: np.random.Generator) -> Array:
    """Return the labels, a fraction of them moved to another class."""
    wrong = rng.random(len(labels)) < share
    moved = (labels + rng.integers(1, data.num_labels, len(labels))) % data.num_labels
    return np.where(wrong, moved, labels)


def _pixels(data: ImageData, x: Array, y: Array, device: torch.device) -> Pixels:
    mean, std = data.moments
    pixels = torch.from_numpy(np.clip(x * std + mean, 0.0, 1.0).astype(np.float32))
    return Pixels(pixels.to(device), torch.from_numpy(np.array(y)).to(device))
