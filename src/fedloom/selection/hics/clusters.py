"""Clients' distances, Ward's clusters of them, and the two draws over clusters.

N clients, C classes, n inputs of the output layer, m places in the cohort. As read in the released code (`server_hics`,
`clustering`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.selection._choosing.sampling import Floats, Indices

Merges = list[tuple[int, int]]
"""Pairs of clusters merged, one after the other: 0 to N - 1 are the clients, N + s is the result of merge s."""
_UNIT = 10**10
"""Weights are compared as whole numbers of this fraction, as the released code does."""


def entropies(changes: Floats, temperature: float) -> Floats:
    """Entropy of softmax(Δ_k / T): the flatter the change, the more balanced the data.

    Args:
        changes: Δ, mean change of the weights of each output, float64 [N, C].
        temperature: T > 0, in units of Δ.

    Returns:
        float64 [N], nats, from 0 to ln C.
    """
    logits = changes / temperature
    logits = logits - logits.max(axis=1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.asarray(-(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1))


def distances(layers: Floats, entropy: Floats, entropy_weight: float) -> Floats:
    """angle(g_i, g_j) + lambda |H_i - H_j|; the angle to a layer that did not change is 0.

    Args:
        layers: changes g of the whole output layer, weights and bias, float64 [N, C (n + 1)].
        entropy: H, float64 [N], nats.
        entropy_weight: lambda.

    Returns:
        float64 [N, N].
    """
    norms = np.sqrt((layers**2).sum(axis=1))
    product = norms[:, None] * norms[None, :]
    cosine = np.divide(layers @ layers.T, product, out=np.ones_like(product), where=product > 0)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    np.fill_diagonal(angle, 0.0)
    return np.asarray(angle + entropy_weight * np.abs(entropy[:, None] - entropy[None, :]))


def ward(points: Floats) -> Merges:
    """Merge clusters of points by Ward's method until one is left; ties merge the first pair.

    d²(k, i + j) = ((n_i + n_k) d²_ik + (n_j + n_k) d²_jk - n_k d²_ij) / (n_i + n_j + n_k) (Lance and Williams 1967).
    Costs O(N³).

    Args:
        points: float64 [N, p]; the released code passes the rows of the matrix of distances.
    """
    count = len(points)
    squared = np.array([((points - row) ** 2).sum(axis=1) for row in points])
    np.fill_diagonal(squared, np.inf)
    names, sizes, merges = list(range(count)), np.ones(count), Merges()
    for step in range(count - 1):
        i, j = sorted(int(index) for index in np.unravel_index(int(squared.argmin()), squared.shape))
        with np.errstate(invalid="ignore"):
            total = sizes[i] + sizes[j] + sizes
            merged = (sizes[i] + sizes) * squared[i] + (sizes[j] + sizes) * squared[j] - sizes * squared[i, j]
        squared[i] = squared[:, i] = merged / total
        squared[i, i] = np.inf
        squared = np.delete(np.delete(squared, j, axis=0), j, axis=1)
        merges.append((names[i], names[j]))
        sizes[i] += sizes[j]
        sizes, names[i] = np.delete(sizes, j), count + step
        del names[j]
    return merges


def cut(merges: Merges, count: int) -> list[list[int]]:
    """Return the clusters when `count` of them are left, by their first client."""
    return _joined(merges[: max(0, len(merges) + 1 - count)], len(merges) + 1)


def draw_balanced(groups: Sequence[Sequence[int]], preference: Floats, size: int, rng: np.random.Generator) -> Indices:
    """Draw a cluster for each place, then that many of its members, uniformly.

    Args:
        groups: members of each cluster.
        preference: logarithm of each cluster's weight, float64 [M]; a cluster whose members are all taken is left out.
        size: places, at most the number of members.
        rng: one draw for each place, and one for each cluster drawn.

    Returns:
        Members by cluster, [size].
    """
    room, taken = np.array([len(group) for group in groups]), np.zeros(len(groups), np.int64)
    for _ in range(size):
        weights = np.where(taken < room, np.exp(preference - preference.max()), 0.0)
        if not weights.any():  # those with room underflow to 0
            weights = (taken < room).astype(np.float64)
        taken[int(rng.choice(len(groups), p=weights / weights.sum()))] += 1
    picked = [rng.choice(group, count, replace=False) for group, count in zip(groups, taken, strict=True) if count]
    return np.concatenate(picked).astype(np.intp)


def draw_by_weight(merges: Merges, weights: Floats, size: int, rng: np.random.Generator) -> Indices:
    """Draw one client from each of m rows of equal weight, made of clusters as whole as possible.

    Fraboni et al. 2021, "Clustered Sampling", algorithm 2: clusters grow along the tree while they weigh at most 1/m;
    the m heaviest are a row each, the others fill these rows up. Of each row a client is drawn in proportion to its
    part. A client of weight 1/m or more has a place for itself.

    Args:
        merges: Ward's tree of N clients.
        weights: p, shares of the examples, float64 [N], sum 1.
        size: m, at most N.
        rng: one order for each cluster that is distributed, and one draw for each row.

    Returns:
        Distinct clients, [m].
    """
    free, picked = weights.copy(), list[int]()
    while free.any() and len(heavy := np.flatnonzero(free * (size - len(picked)) >= free.sum())):
        picked += [int(client) for client in heavy[: size - len(picked)]]
        free[heavy] = 0.0
    left = size - len(picked)
    for row in _rows(merges, free / free.sum() if free.any() else free, left, rng) if left else ():
        row[picked] = 0.0
        if not row.any():  # all of its clients were drawn from other rows
            row[:] = 1.0
            row[picked] = 0.0
        picked.append(int(rng.choice(len(row), p=row / row.sum())))
    return np.array(picked, np.intp)


def _rows(merges: Merges, weights: Floats, size: int, rng: np.random.Generator) -> Floats:
    """Return the clients' parts of each row, whole numbers of `_UNIT`, float64 [m, N]."""
    count = len(weights)
    groups = _joined(_light(merges, weights, size), count)
    parts = (weights * size * _UNIT).astype(np.int64)
    groups.sort(key=lambda group: int(parts[group].sum()))
    rows = np.zeros((size, count))
    kept = groups[max(0, len(groups) - size) :]
    for row, group in zip(rows, kept, strict=False):
        row[group] = parts[group]
    room, at = _UNIT - rows.sum(axis=1), 0
    for group in groups[: len(groups) - len(kept)]:
        for client in rng.permutation(group):
            rest = float(parts[client])
            while rest > 0 and at < size:
                part = min(room[at], rest)
                rows[at, client] += part
                room[at] -= part
                rest -= part
                at += int(room[at] <= 0)
    return rows


def _light(merges: Merges, weights: Floats, size: int) -> list[tuple[int, int]]:
    """Return the merges whose clusters weigh at most 1/m, with the names they have in the tree; others are gaps."""
    sums = list(weights)
    found: list[tuple[int, int]] = []
    for left, right in merges:
        sums.append(sums[left] + sums[right])
        found.append((left, right) if int(sums[-1] * _UNIT) <= _UNIT // size else (-1, -1))
    return found


def _joined(merges: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """Return the clusters after these merges (-1 is one not made), members increasing, by their first one."""
    members: list[list[int]] = [[client] for client in range(count)]
    whole = set(range(count))
    for left, right in merges:
        members.append(sorted(members[left] + members[right]) if left >= 0 else [])
        if left >= 0:
            whole -= {left, right}
            whole.add(len(members) - 1)
    return sorted(members[each] for each in whole)
