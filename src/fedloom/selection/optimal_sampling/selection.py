"""Optimal client sampling: inclusion in proportion to a client's weighted update norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.records import ClientReport
from fedloom.selection._choosing.probed import ProbedSelection
from fedloom.selection._choosing.reports import examples, numbers
from fedloom.selection._choosing.sampling import Floats, Indices, systematic
from fedloom.selection.optimal_sampling.config import Config


def inclusion_probabilities(weighted_norms: Floats, size: int) -> Floats:
    """pi_k proportional to u_k = p_k ||w_k - w_t||, capped at 1, adding up to m.

    Chen, Horváth, Richtárik 2020, "Optimal Client Sampling for Federated Learning", the solution of their Algorithm 1:
    with l uncapped clients pi_k = (m + l - d) u_k / sum of the l smallest u, and 1 for the others. Found here by
    capping each that exceeds 1 and sharing the rest again, until none does. If only zeros remain, they
    share equally.

    Args:
        weighted_norms: u, float64 [d], non-negative.
        size: m, at most d.

    Returns:
        float64 [d], in [0, 1].
    """
    inclusion = np.zeros(len(weighted_norms))
    open_ = np.ones(len(weighted_norms), bool)
    while open_.any():
        places = size - int((~open_).sum())
        total = weighted_norms[open_].sum()
        share = weighted_norms[open_] / total if total > 0 else np.full(int(open_.sum()), 1.0 / open_.sum())
        inclusion[open_] = places * share
        capped = open_ & (inclusion >= 1.0)
        inclusion[capped] = 1.0
        if not capped.any():
            break
        open_ &= ~capped
    return inclusion


def pick(reports: Sequence[ClientReport], size: int, rng: np.random.Generator) -> Indices:
    """M candidates, drawn with inclusion probabilities proportional to p_k ||w_k - w_t||.

    Chen, Horváth, Richtárik 2020 (see `inclusion_probabilities`); p_k = n_k / n over the candidates. Their draws are
    independent, so that a cohort has m clients on average; here it has exactly m, with the same probabilities
    (systematic sampling). Their unbiased estimate divides each update by its probability: that is part of
    aggregation, which a selection does not change, so the mean is biased towards large updates.
    """
    norms = np.nan_to_num(numbers(reports, "norm", "optimal_sampling"))  # a missing norm counts as no update
    weights = examples(reports)
    weighted_norms = np.maximum(norms, 0.0) * weights / max(weights.sum(), 1.0)
    return systematic(inclusion_probabilities(weighted_norms, min(size, len(reports))), rng)


def build_selection(config: Config) -> ProbedSelection:
    """Return the selection a `Config` describes."""
    return ProbedSelection(settings=config, kind="train", measure="update_norm", pick=pick)
