"""Applies settings of training to one client: weights of classes, held-back rows, the round's step size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.workloads._base.rows import RowSource
from fedloom.workloads._torch.settings import TrainingSettings


def check_training(settings: TrainingSettings, experiment: Experiment, *, own_loss: bool) -> None:
    """Refuse settings that would be without effect, or cannot be followed.

    Args:
        settings: the workload's.
        experiment: whose rounds a schedule may count.
        own_loss: whether the workload minimises something else than plain cross-entropy.

    Raises:
        ConfigError: the message names the setting.
    """
    if own_loss and settings.changes_loss:
        key = "class_weights" if settings.class_weights else "label_smoothing"
        raise ConfigError(
            f"workload.training.{key}: changes cross-entropy, but workload {experiment.workload.name!r} computes "
            "its own loss; remove it"
        )
    if settings.rounds_needed_by:
        experiment.rounds_known(settings.rounds_needed_by)


def round_factor(settings: TrainingSettings, round: int, experiment: Experiment) -> float:
    """Return the factor on the step size in a round, from 1."""
    schedule = settings.round_schedule
    return schedule.factor(round - 1, experiment.max_rounds or 1) if schedule.varies else 1.0


def held_back(rows: Array, settings: TrainingSettings, seed: int, client: int) -> tuple[Array, Array]:
    """Split a client's rows into those trained on and those that early stopping looks at, in every round alike.

    Returns:
        Both in the order of `rows`; the latter are none if nothing stops early, or there is one row.
    """
    if settings.early_stopping is None or len(rows) < 2:
        return rows, rows[:0]
    count = min(max(1, round(settings.early_stopping.share * len(rows))), len(rows) - 1)
    chosen = np.zeros(len(rows), bool)
    chosen[generator(seed, "early_stopping", client).permutation(len(rows))[:count]] = True
    return rows[~chosen], rows[chosen]


def weights_of(
    settings: TrainingSettings, source: RowSource, rows: Array, num_labels: int, device: torch.device
) -> Tensor | None:
    """Return the weight of each class on a client, (K,), float32; None if all are alike.

    Raises:
        ConfigError: there are other numbers of weights and classes.
    """
    given = settings.class_weights
    if not given:
        return None
    if isinstance(given, tuple):
        if len(given) != num_labels:
            raise ConfigError(
                f"workload.training.class_weights: expected {num_labels or 'none, since there are no classes'}"
                f"{' numbers, one for each class' if num_labels else ''}, got {len(given)}"
            )
        return torch.tensor(given, dtype=torch.float32, device=device)
    _, targets = source.batch(torch.from_numpy(rows).to(device))
    counts = torch.bincount(targets, minlength=num_labels).double()
    present = counts > 0
    balanced = len(rows) / (present.sum() * counts.clamp(min=1.0))
    return torch.where(present, balanced, 0.0).float()
