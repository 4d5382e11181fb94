"""A Gaussian process over clients: low-rank covariance of loss changes, and picks by correlation."""

from __future__ import annotations

import numpy as np

from fedloom.selection._choosing.sampling import Floats, Indices


def fit(changes: Floats, weights: Floats, dimension: int, noise: float) -> Floats:
    """Fit the embedding X of largest marginal likelihood for changes ~ N(0, XᵀX + noise² I).

    FedCor's linear kernel. The public code climbs the likelihood (or its leave-one-out form) with
    Adam; for this kernel with its noise fixed the maximum has a closed form, that of probabilistic principal components
    (Tipping and Bishop 1999): the leading eigenvectors of the second-moment matrix, scaled by
    sqrt(eigenvalue - noise²).

    Args:
        changes: loss changes less their mean, one row per round, float64 [S, N].
        weights: of the rounds, positive, float64 [S].
        dimension: largest rank of X.
        noise: sigma_n > 0, in units of loss.

    Returns:
        X, float64 [min(dimension, S, N), N].
    """
    scaled = changes * np.sqrt(weights / weights.sum())[:, None]
    _, singular, axes = np.linalg.svd(scaled, full_matrices=False)
    spread = np.sqrt(np.maximum(singular**2 - noise**2, 0.0))[:dimension]
    return np.asarray(spread[:, None] * axes[: len(spread)])


def centred(changes: Floats, weights: Floats, *, around_mean: bool) -> Floats:
    """Subtract each client's weighted mean, mu_k = sum_s w_s y_sk / sum_s w_s over the rounds in which it is known.

    Args:
        changes: loss changes, one row per round, NaN if unknown, float64 [S, N].
        weights: of the rounds, positive, float64 [S].
        around_mean: false takes mu = 0.

    Returns:
        The changes less their mean, 0 if unknown, float64 [S, N].
    """
    known = np.isfinite(changes)
    filled = np.where(known, changes, 0.0)
    if not around_mean:
        return filled
    total = weights @ known
    mean = np.divide(weights @ filled, total, out=np.zeros(changes.shape[1]), where=total > 0)
    return np.where(known, filled - mean, 0.0)


def correlated(embedding: Floats, noise: float, weights: Floats, alpha: Floats, size: int) -> Indices:
    """Pick, `size` times, argmax_k alpha_k / sqrt(Σ_kk) * sum_i p_i Σ_ik, then condition: Σ -= Σ_:k Σ_k: / Σ_kk.

    Tang et al. 2022, as read in the public code (`Select_Clients`). Σ = XᵀX + noise² I is never formed: each pick costs
    O(N (rank + picks)).

    Args:
        embedding: X, float64 [rank, N].
        noise: sigma_n.
        weights: p_i, shares of the examples, float64 [N].
        alpha: discounts in (0, 1]; minus infinity bars a client, float64 [N].
        size: at most the clients not excluded.

    Returns:
        Indices in the order picked, [size].
    """
    variance = (embedding**2).sum(axis=0) + noise**2
    pull = embedding.T @ (embedding @ weights) + noise**2 * weights
    removed: list[Floats] = []
    free = np.isfinite(alpha)
    picked: list[int] = []
    for _ in range(size):
        gain = np.where(free, np.where(free, alpha, 0.0) * pull / np.sqrt(np.maximum(variance, 1e-300)), -np.inf)
        best = int(gain.argmax())
        column = embedding.T @ embedding[:, best]
        column[best] += noise**2
        for direction in removed:
            column = column - direction * direction[best]
        direction = column / np.sqrt(variance[best])
        pull = pull - direction * (direction @ weights)
        variance = variance - direction**2
        removed.append(direction)
        free[best] = False
        picked.append(best)
    return np.array(picked, np.intp)
