"""Criterion and score of MaNo from sums over samples, so that any batches or clients give the value of the whole.

Xie et al. 2024 (arXiv 2405.18979), section 4. With s = softmax(q) and Q the softrun of all N rows of K logits:

    Phi = -1 / (N K) sum_ik ln s_ik                     criterion: large if the model is confident
    S   = (1 / (N K) sum_ik |Q_ik|^p)^(1/p)             score, p = 4

S is 1/K if all rows are uniform and K^(-1/p) if each is one-hot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedloom.core.records import Array, Info
from fedloom.strategies.mano.monitor.softrun import Branch, log_softmax, softmax, taylor

ETA = 5.0
"""The paper's threshold, eta."""
POWER = 4
"""The paper's p."""
Criterion = Literal["ce", "kl"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """The contribution of some samples to the score of any set they are part of."""

    samples: int
    """N."""
    classes: int
    """K."""
    log_shares: float
    """B = sum_ik ln s_ik."""
    softmax: float
    """sum_i ||softmax(q_i)||_p^p."""
    taylor: float
    """sum_i ||taylor(q_i)||_p^p."""
    power: float = POWER
    """p."""

    @classmethod
    def of(cls, logits: Array, *, power: float = POWER) -> Sums:
        """Return the sums of a batch of logits, (n, K)."""
        log_shares = log_softmax(logits)
        return cls(
            samples=len(logits),
            classes=np.shape(logits)[1],
            log_shares=float(log_shares.sum()),
            softmax=power_sum(np.exp(log_shares), power),
            taylor=power_sum(taylor(logits), power),
            power=power,
        )

    def __add__(self, other: Sums) -> Sums:
        assert (self.classes, self.power) == (other.classes, other.power)
        return Sums(
            samples=self.samples + other.samples,
            classes=self.classes,
            log_shares=self.log_shares + other.log_shares,
            softmax=self.softmax + other.softmax,
            taylor=self.taylor + other.taylor,
            power=self.power,
        )

    @property
    def criterion(self) -> float:
        """Phi, at least ln K; `Phi - ln K` is the mean divergence of uniform from the predictions."""
        return -self.log_shares / (self.samples * self.classes)

    def score(self, branch: Branch) -> float:
        """S."""
        total = self.softmax if branch == "softmax" else self.taylor
        return norm(total, self.samples, self.classes, self.power)

    def to_json(self) -> dict[str, float]:
        """Return the numbers a client sends."""
        return {"log_shares": self.log_shares, "softmax": self.softmax, "taylor": self.taylor}

    @classmethod
    def from_json(cls, reported: Info, *, samples: int, classes: int, power: float = POWER) -> Sums:
        """Return the sums of the numbers a client sent (inverse of `to_json`)."""
        sums = {name: float(reported[name]) for name in ("log_shares", "softmax", "taylor")}
        return cls(samples=samples, classes=classes, power=power, **sums)


def power_sum(shares: Array, power: float) -> float:
    """Return the sum over samples and classes of |Q_ik|^p."""
    return float((np.abs(shares) ** power).sum())


def norm(total: float, samples: int, classes: int, power: float) -> float:
    """Return the score (total / (N K))^(1/p)."""
    return float((total / (samples * classes)) ** (1.0 / power))


def choose(criterion: float, classes: int, *, eta: float = ETA, kind: Criterion = "ce") -> Branch:
    """Return the branch for a set of this criterion: Taylor if it is at most eta.

    With `ce`, the printed formula, Phi is at least ln K, so that Taylor cannot be reached if ln K > eta. `kl` takes
    Phi - ln K instead.
    """
    value = criterion if kind == "ce" else criterion - math.log(classes)
    return "taylor" if value <= eta else "softmax"


def span(classes: int, power: float = POWER) -> tuple[float, float]:
    """Return the smallest and the largest possible score: uniform rows, one-hot rows."""
    return 1.0 / classes, float(classes ** (-1.0 / power))


def batch_mean(logits: Array, branch: Branch, *, batch_size: int = 128, power: float = POWER) -> float:
    """Return the released code's score: the mean of the batches' norms. For equal batches at most the whole set's."""
    shares = softmax(logits) if branch == "softmax" else taylor(logits)
    parts = [shares[start : start + batch_size] for start in range(0, len(shares), batch_size)]
    return float(np.mean([norm(power_sum(part, power), len(part), part.shape[1], power) for part in parts]))
