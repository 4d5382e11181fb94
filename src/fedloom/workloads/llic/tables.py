"""Integer probability tables of symbols: what a range coder uses, and what a model's identity covers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fedloom.core.records import Array
from fedloom.workloads.llic.prior import FactorisedPrior
from fedloom.workloads.llic.quantising import LEAST_SCALE

TOTAL = 2**20
"""Sum of each table's entries."""
_SCALES = 64
_MOST_SCALE = 256.0
_TAIL = 6.0
"""Standard deviations that a table covers; symbols beyond have an escape."""
_MOST_RANGE = 2000
"""Symbols to either side that a table of the hyper-latent covers, at most."""


@dataclass(frozen=True, slots=True)
class Table:
    """Probabilities of the symbols `first`, `first` + 1, …, and last of an escape, in units of 2^-20."""

    first: int
    weights: Array
    """(n + 1,), int64, each at least 1, summing to 2^20."""

    @property
    def count(self) -> int:
        """Return n, the symbols besides the escape."""
        return len(self.weights) - 1


def scales() -> Array:
    """Return the standard deviations that have a table, (64,), from 0.11 to 256 in equal ratios."""
    return np.asarray(np.exp(np.linspace(math.log(LEAST_SCALE), math.log(_MOST_SCALE), _SCALES)))


def thresholds() -> Array:
    """Return where one table ends and the next begins, (63,): geometric means of neighbours."""
    found = scales()
    return np.asarray(np.sqrt(found[:-1] * found[1:]))


def whole(probabilities: Array) -> Array:
    """Return probabilities as whole numbers of at least 1 that sum to 2^20; the largest takes up the difference."""
    weights: Array = np.maximum(np.rint(probabilities * TOTAL).astype(np.int64), 1)
    weights[np.argmax(weights)] += TOTAL - weights.sum()
    return weights


def gaussian_tables() -> list[Table]:
    """Return the table of each scale."""
    return [_gaussian(float(scale)) for scale in scales()]


def _gaussian(scale: float) -> Table:
    reach = math.ceil(_TAIL * scale) + 1
    edges = np.array([math.erf((k - 0.5) / scale / math.sqrt(2)) for k in range(-reach, reach + 2)])
    mass = np.diff(edges) / 2
    return Table(-reach, whole(np.append(mass, max(1.0 - mass.sum(), 0.0))))


@torch.no_grad()
def prior_tables(prior: FactorisedPrior) -> list[Table]:
    """Return the table of each channel of the hyper-latent; symbols are distances from the channel's median.

    Args:
        prior: in float64.
    """
    quantiles = prior.quantiles.detach()
    low, median, high = quantiles.unbind(1)
    reach_low = torch.ceil(median - low).clamp(1, _MOST_RANGE).long().tolist()
    reach_high = torch.ceil(high - median).clamp(1, _MOST_RANGE).long().tolist()
    below, above = max(reach_low), max(reach_high)
    places = torch.arange(-below, above + 2, dtype=quantiles.dtype) - 0.5
    logits = prior.logits(median[:, None] + places)
    lower, upper = logits[:, :-1], logits[:, 1:]
    sign = -torch.sign(lower + upper)
    mass = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs().numpy()
    found = []
    for row, one, other in zip(mass, reach_low, reach_high, strict=True):
        kept = row[below - one : below + other + 1]
        found.append(Table(-one, whole(np.append(kept, max(1.0 - float(kept.sum()), 0.0)))))
    return found
