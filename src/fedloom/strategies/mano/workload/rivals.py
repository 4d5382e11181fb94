"""The other label-free scores the paper compares with. Higher should mean more accurate.

N samples, K classes, d features. Logits q and shares s = softmax(q) are (N, K), float64; predictions (N,), int64.
Definitions as in Xie et al. 2024 (arXiv 2405.18979), appendix, and in the released code of each if available.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from fedloom.core.records import Array
from fedloom.strategies.mano.monitor.softrun import log_softmax

_RIDGE = 1e-9
_COLDEST, _HOTTEST = 0.01, 100.0
"""Limits of a temperature: without a wrong prediction, or without a right one, none is best."""


def confidence(shares: Array) -> Array:
    """Greatest share of each sample, (N,): its mean is ConfScore, and ATC-MC thresholds it."""
    highest: Array = shares.max(axis=1)
    return highest


def negative_entropy(logits: Array) -> Array:
    """Negative entropy sum_k s_k ln s_k of each sample, (N,): its mean is Entropy, and ATC-NE thresholds it."""
    log_shares = log_softmax(logits)
    entropy: Array = (np.exp(log_shares) * log_shares).sum(axis=1)
    return entropy


def agreement(first: Array, second: Array) -> float:
    """AgreeScore: share of samples on which two models, trained from different seeds, agree."""
    return float((first == second).mean())


def temperature(logits: Array, labels: Array) -> float:
    """Temperature T > 0 of least cross-entropy of softmax(q / T) on labelled source samples.

    Guo et al. 2017, "On Calibration of Modern Neural Networks". In b = 1 / T the cross-entropy is convex, and its
    slope, the mean of sum_k softmax(b q)_k q_k - q_y, rises: its zero is found by bisection.

    Args:
        logits: q, (N, K).
        labels: y, (N,), int64.

    Returns:
        T, dimensionless, from 0.01 to 100.
    """
    centred = np.asarray(logits, np.float64)
    centred = centred - centred.max(axis=1, keepdims=True)
    own = centred[np.arange(len(labels)), labels].mean()
    low, high = np.log(1.0 / _HOTTEST), np.log(1.0 / _COLDEST)
    for _ in range(60):
        middle = (low + high) / 2.0
        expected = (np.exp(log_softmax(centred * np.exp(middle))) * centred).sum(axis=1).mean()
        low, high = (middle, high) if expected < own else (low, middle)
    return float(np.exp(-(low + high) / 2.0))


def atc_threshold(scores: Array, correct: Array) -> float:
    """ATC's t: the share of labelled source samples that score below it is their error.

    Garg et al. 2022, "Leveraging Unlabeled Data to Predict Out-of-Distribution Performance", equation 1.
    """
    wrong = int((~correct).sum())
    return float(np.sort(scores)[wrong]) if wrong < len(scores) else float(np.max(scores)) + 1.0


def atc(scores: Array, threshold: float) -> float:
    """ATC: share of samples that score at least t."""
    return float((scores >= threshold).mean())


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A normal distribution fitted to source features, for the Frechet distance."""

    mean: Array
    """(d,)."""
    covariance: Array
    """(d, d)."""
    root: Array
    """Its symmetric square root."""

    @classmethod
    def of(cls, features: Array) -> Gaussian:
        """Fitted to features (n, d)."""
        mean, covariance = _moments(features)
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        return cls(mean, covariance, root)


def frechet(features: Array, source: Gaussian) -> float:
    """Frechet: minus ||mu - mu0||^2 + tr(C + C0 - 2 (C0 C)^(1/2)).

    Deng and Zheng 2021, "Are Labels Always Necessary for Classifier Accuracy Evaluation?", section 3. The trace of the
    root is that of the symmetric (C0^(1/2) C C0^(1/2))^(1/2).
    """
    mean, covariance = _moments(features)
    inner = np.linalg.eigvalsh(source.root @ covariance @ source.root)
    cross = np.sqrt(np.maximum(inner, 0.0)).sum()
    distance = ((mean - source.mean) ** 2).sum() + np.trace(covariance) + np.trace(source.covariance) - 2.0 * cross
    return -float(distance)


def dispersion(features: Array, predictions: Array, classes: int) -> float:
    """Return the dispersion: ln(sum_k n_k ||mu_k - mu||^2 / (K - 1)), clusters being the predicted classes.

    A reconstruction: the method's own code was unavailable. Predictions of one class alone have no dispersion; a
    small constant keeps the logarithm finite.
    """
    centre, total = features.mean(axis=0), 0.0
    for label in np.unique(predictions):
        cluster = features[predictions == label]
        total += len(cluster) * float(((cluster.mean(axis=0) - centre) ** 2).sum())
    return float(np.log(total / (classes - 1) + _RIDGE))


def nuclear(shares: Array) -> float:
    """Nuclear: ||P||_* / sqrt(min(N, K) N), P the matrix of shares.

    Deng et al. 2023, "Confidence and Dispersity Speak". The normaliser is a reconstruction; a constant factor changes
    neither R^2 nor rank correlation at fixed N and K.
    """
    samples, classes = shares.shape
    return float(np.linalg.svd(shares, compute_uv=False).sum() / np.sqrt(min(samples, classes) * samples))


def meta_energy(logits: Array) -> float:
    """MDE: -mean_i ln softmax(E)_i over the samples, E_i = -ln sum_k exp(q_ik).

    Peng et al. 2024, "Energy-based Automated Model Evaluation", at temperature 1 and without the code's further
    logarithm.
    """
    energies = -logsumexp(logits, axis=1)
    return float(logsumexp(energies) - energies.mean())


def sampled_labels(marginal: Array, count: int, rng: np.random.Generator) -> Array:
    """Labels drawn from the source's class frequencies, (count,), for COT."""
    drawn: Array = rng.choice(len(marginal), size=count, p=marginal)
    return drawn


def transport_costs(shares: Array, labels: Array) -> Array:
    """Cost of each sample under the cheapest way to hand out the labels, one each, (N,).

    Half the L1 distance between s_i and a one-hot label k is 1 - s_ik, so this is the exact optimal transport between
    the shares and the labels. Lu et al. 2023, "Characterizing Out-of-Distribution Error via Optimal Transport".

    Args:
        shares: s, (N, K).
        labels: as many, (N,), int64.
    """
    rows, columns = linear_sum_assignment(1.0 - shares[:, labels])
    costs = np.empty(len(shares))
    costs[rows] = 1.0 - shares[rows, labels[columns]]
    return costs


def _moments(features: Array) -> tuple[Array, Array]:
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))
