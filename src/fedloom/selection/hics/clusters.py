"""Clusters of candidates, and a draw over them."""

from __future__ import annotations

import numpy as np

from fedloom.selection._choosing.coverage import cosine
from fedloom.selection._choosing.sampling import Floats, Indices, weighted


def entropies(changes: Floats, temperature: float) -> Floats:
    """Entropy of softmax(Δ_k / (temperature * max |Δ|)): the flatter the change, the more balanced the data.

    Args:
        changes: Δ, float64 [n, C].
        temperature: > 0, dimensionless.

    Returns:
        float64 [n], nats, from 0 to ln C.
    """
    scale = np.abs(changes).max(initial=0.0)
    logits = changes / (temperature * scale if scale > 0 else 1.0)
    logits = logits - logits.max(axis=1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.asarray(-(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1))


def distances(changes: Floats, entropy: Floats, entropy_weight: float) -> Floats:
    """angle(Δ_i, Δ_j) + lambda |H_i - H_j|, float64 [n, n]."""
    angle = np.arccos(np.clip(1.0 - cosine(changes), -1.0, 1.0))
    return np.asarray(angle + entropy_weight * np.abs(entropy[:, None] - entropy[None, :]))


def clusters(apart: Floats, count: int) -> list[list[int]]:
    """Agglomerative clustering with average linkage, until `count` clusters are left; ties merge the first pair.

    Args:
        apart: symmetric distances, float64 [n, n].
        count: number of clusters, 1 <= count <= n.

    Returns:
        Indices of each cluster, increasing; clusters by their first index.
    """
    groups, between = [[index] for index in range(len(apart))], apart.copy()
    np.fill_diagonal(between, np.inf)
    while len(groups) > count:
        left, right = sorted(int(index) for index in np.unravel_index(int(between.argmin()), between.shape))
        a, b = len(groups[left]), len(groups[right])
        merged = (a * between[left] + b * between[right]) / (a + b)
        between[left] = between[:, left] = merged
        between[left, left] = np.inf
        between = np.delete(np.delete(between, right, axis=0), right, axis=1)
        groups[left] = sorted(groups[left] + groups.pop(right))
    return groups


def draw(
    groups: list[list[int]], entropy: Floats, weights: Floats, size: int, preference: float, rng: np.random.Generator
) -> Indices:
    """Draw a cluster, then one of its members, `size` times; each member at most once.

    A cluster with members left is drawn with probability proportional to exp(preference * its mean entropy), a member
    in proportion to its weight.

    Args:
        groups: indices of each cluster.
        entropy: of each candidate, float64 [n], nats.
        weights: of each candidate, positive, float64 [n].
        size: at most n.
        preference: >= 0.
        rng: one draw for each choice of a cluster and of a member.

    Returns:
        Indices in the order drawn, [size].
    """
    mean = np.array([entropy[group].mean() for group in groups])
    left = [list(group) for group in groups]
    picked: list[int] = []
    while len(picked) < size:
        open_ = [index for index, members in enumerate(left) if members]
        members = left[open_[int(weighted(preference * mean[open_], 1, rng)[0])]]
        picked.append(members.pop(int(weighted(np.log(weights[members]), 1, rng)[0])))
    return np.array(picked, np.intp)
