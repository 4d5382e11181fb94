"""Credits and rules of SFedCA as pure functions. A reconstruction from the abstract, with our defaults.

d candidates are in random draw order, m are chosen, C is the number of output neurons. `kappa` are credits,
float64 [d]; `gains` are u_{k,c} = n_k max(Δ_{k,c}, 0), float64 [d, C]. A rule returns indices in the order it picks
them; ties go to the first drawn, never to an id.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedloom.selection._choosing.balance import imbalance
from fedloom.selection._choosing.reports import largest
from fedloom.selection._choosing.sampling import weighted

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]
Norm = Literal["l1", "l2", "per_sample", "signed", "positive"]
Rule = Literal["shortlist-balance", "topm", "balance-all", "cover", "softmax", "lowest"]
NEEDS_GAINS = frozenset({"shortlist-balance", "balance-all", "cover"})
"""Rules that read the gains, so that candidates must send C more floats."""

_SLACK = 1e-6
"""Relative tolerance of a credit above its bound, for rounding (rates may be float32 means)."""


def credits(before: npt.ArrayLike, after: npt.ArrayLike, norm: Norm = "l1") -> float:
    """Return one layer's credit, from Δ = after - before.

    `l1` sum_c |Δ_c|; `l2` sqrt(sum_c Δ_c²); `signed` sum_c Δ_c; `positive` sum_c max(Δ_c, 0); `per_sample` the mean
    over samples of sum_c |Δ_xc|. Sums are correctly rounded: the order of neurons and samples does not matter.

    Args:
        before: firing rates of the global model in [0, 1]: [C] means over samples, or [n, C] for `per_sample`.
        after: those of the trained model on the same samples with the same encoder noise, same shape.
        norm: which.

    Returns:
        In [0, C]; for `l2` in [0, sqrt(C)], for `signed` in [-C, C].
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if norm == "per_sample":
        return math.fsum(np.abs(change).ravel()) / max(len(change), 1)
    if norm == "l2":
        return math.sqrt(math.fsum((change**2).ravel()))
    parts = {"l1": np.abs(change), "signed": change, "positive": np.maximum(change, 0.0)}[norm]
    return math.fsum(parts.ravel())


def bound(norm: Norm, width: int) -> float:
    """Return the largest credit a layer of `width` neurons can have; `signed` credits have its negative as smallest."""
    return math.sqrt(width) if norm == "l2" else float(width)


def sane(kappa: Floats, gains: Floats | None, norm: Norm, classes: int) -> tuple[Floats, Flags]:
    """Return credits clipped to the possible range, and which were: a client cannot win by claiming 1e9.

    Args:
        kappa: credits as claimed, NaN if missing or not finite, float64 [d].
        gains: Δ as claimed, each within [-1, 1], NaN if missing or malformed, float64 [d, C]; None if not reported.
        norm: of the credits.
        classes: C.

    Returns:
        The clipped credits (NaN becomes 0), float64 [d]; and flags, bool [d], of those whose credit or gains were not
        possible. Flagged candidates are chosen after all others (see `choose`).
    """
    high = bound(norm, classes) * (1.0 + _SLACK)
    low = -high if norm == "signed" else 0.0
    flagged = ~((kappa >= low) & (kappa <= high))
    if gains is not None:
        flagged |= ~possible(gains)
    return np.clip(np.nan_to_num(kappa, nan=0.0), low, high), flagged


def possible(gains: Floats) -> Flags:
    """Return which rows of gains (Δ, float64 [d, C]) are within [-1, 1], as changes of rates and shares are."""
    return np.asarray((np.abs(gains) <= 1.0 + _SLACK).all(axis=1), np.bool_)


def weighted_gains(gains: npt.ArrayLike, num_examples: npt.ArrayLike) -> Floats:
    """u_{k,c} = n_k max(Δ_{k,c}, 0), from Δ [d, C] and n [d]; float64 [d, C]."""
    return np.maximum(np.asarray(gains, np.float64), 0.0) * np.asarray(num_examples, np.float64)[:, None]


def topm(kappa: Floats, m: int) -> Indices:
    """Return the m largest credits, largest first: the literal reading of the abstract."""
    return largest(kappa, m)


def lowest(kappa: Floats, m: int) -> Indices:
    """Return the m smallest credits, smallest first: a negative control."""
    return largest(-kappa, m)


def balance_all(gains: Floats, m: int) -> Indices:
    """Start with v = 0; m times add the k minimising Q(v + u_k), Q(z) = sum_c (z_c / sum z - 1/C)².

    A candidate without gains leaves v as it is; as long as v is 0 such candidates come last, in draw order.
    """
    pool, left, picked = np.zeros(gains.shape[1]), list(range(len(gains))), list[int]()
    for _ in range(min(m, len(gains))):
        best = left.pop(int(imbalance(pool + gains[left]).argmin()))
        pool = pool + gains[best]
        picked.append(best)
    return np.array(picked, np.intp)


def shortlist_balance(kappa: Floats, gains: Floats, m: int, shortlist: float = 2.0) -> Indices:
    """Choose, of the ceil(shortlist * m) largest credits, the m whose gains are jointly most uniform. Default; ours.

    Among the readings tried it is the one under which credits come from firing change and aggregation serves the
    balance of the global sample distribution. Without any gains, the first m in draw order.
    """
    short = np.sort(largest(kappa, math.ceil(shortlist * m)))
    return short[balance_all(gains[short], m)]


def cover(gains: Floats, m: int) -> Indices:
    """Start with v = 0; m times add the k maximising sum_c sqrt(v_c + u_kc): much gain, in many classes. Ours.

    Balance alone prefers a client without gain to one that unbalances the pool. The square root makes
    the sum monotone and submodular, so greedy is within 1 - 1/e of the best set (Nemhauser, Wolsey and Fisher 1978).
    """
    pool, left, picked = np.zeros(gains.shape[1]), list(range(len(gains))), list[int]()
    for _ in range(min(m, len(gains))):
        worth = [math.fsum(row) for row in np.sqrt(pool + gains[left])]
        best = left.pop(int(np.argmax(worth)))
        pool = pool + gains[best]
        picked.append(best)
    return np.array(picked, np.intp)


def softmax(kappa: Floats, m: int, temperature: float, rng: np.random.Generator) -> Indices:
    """M draws without replacement, each with probability proportional to exp(kappa / temperature)."""
    return weighted(kappa / temperature, m, rng)


def choose(
    rule: Rule,
    kappa: Floats,
    gains: Floats | None,
    m: int,
    rng: np.random.Generator,
    *,
    flagged: Flags | None = None,
    shortlist: float = 2.0,
    temperature: float = 0.1,
    exploration: float = 0.0,
) -> Indices:
    """Apply a rule: flagged candidates last, some places drawn uniformly.

    Args:
        rule: which.
        kappa: sane credits, float64 [d].
        gains: u, float64 [d, C]; None for rules that do not read them.
        m: places; all candidates are chosen if d <= m.
        rng: read only by `softmax` and exploration.
        flagged: candidates to choose only if there are too few others, first drawn first; bool [d].
        shortlist: see `shortlist_balance`.
        temperature: see `softmax`.
        exploration: share of the places drawn uniformly from the candidates left, rounded half up.

    Returns:
        Indices in draw order, [min(m, d)]: a choice never changes the aggregation order.
    """
    everyone = np.arange(len(kappa))
    honest = everyone if flagged is None else everyone[~flagged]
    if len(honest) <= m:
        others = np.setdiff1d(everyone, honest)[: m - len(honest)]
        return np.sort(np.concatenate([honest, others]))
    ruled = m - int(exploration * m + 0.5)
    rows = None if gains is None else gains[honest]
    kept = honest[_ruled(rule, kappa[honest], rows, ruled, rng, shortlist, temperature)]
    if ruled < m:
        kept = np.concatenate([kept, rng.choice(np.setdiff1d(honest, kept), m - ruled, replace=False)])
    return np.sort(kept)


def _ruled(
    rule: Rule,
    kappa: Floats,
    gains: Floats | None,
    m: int,
    rng: np.random.Generator,
    shortlist: float,
    temperature: float,
) -> Indices:
    if rule == "topm":
        return topm(kappa, m)
    if rule == "lowest":
        return lowest(kappa, m)
    if rule == "softmax":
        return softmax(kappa, m, temperature, rng)
    if gains is None:
        raise ValueError(f"rule {rule!r} reads gains, got None")
    if rule == "cover":
        return cover(gains, m)
    return balance_all(gains, m) if rule == "balance-all" else shortlist_balance(kappa, gains, m, shortlist)
