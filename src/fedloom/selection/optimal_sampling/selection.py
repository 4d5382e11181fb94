"""Optimal client sampling: inclusion in proportion to what a client's update weighs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.candidates import check_population, draw_uniformly, number_of_candidates
from fedloom.selection._choosing.reports import clients_at, examples, numbers
from fedloom.selection._choosing.sampling import Floats, systematic
from fedloom.selection.optimal_sampling.config import Config
from fedloom.selection.uniform.selection import Nothing


def inclusion_probabilities(weighted_norms: Floats, size: int) -> Floats:
    """pi_k proportional to u_k = p_k ||w_k - w_t||, capped at 1, adding up to m.

    Chen, Horváth, Richtárik 2020, "Optimal Client Sampling for Federated Learning", the solution of their Algorithm 1:
    with l uncapped clients pi_k = (m + l - d) u_k / sum of the l smallest u, and 1 for the others. Found here by
    capping whoever exceeds 1 and sharing the rest again, until nobody does. Where all that is left are zeros, they
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


class OptimalSampling:
    """d uniform candidates train; m of them are drawn with inclusion probabilities proportional to p_k ||w_k - w_t||.

    Chen, Horváth, Richtárik 2020 (see `inclusion_probabilities`); p_k = n_k / n over the candidates. Their draws are
    independent, so that a cohort has m clients on average; here it has exactly m, with the same probabilities
    (systematic sampling). Their unbiased estimate divides each update by its probability: that belongs to
    aggregation, which a selection leaves alone, so the mean is biased towards large updates.
    """

    State = Nothing

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Nothing:
        check_population(self._config, roster)
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        count = number_of_candidates(self._config, roster, size)
        return Probe(candidates=draw_uniformly(roster, count, rng), kind="train", measure="update_norm")

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        size = min(size, len(reports))
        norms = np.nan_to_num(numbers(reports, "norm", "optimal_sampling"))  # what was not told counts as no update
        weights = examples(reports)
        inclusion = inclusion_probabilities(np.maximum(norms, 0.0) * weights / max(weights.sum(), 1.0), size)
        return clients_at(reports, systematic(inclusion, rng))

    def observe(self, state: Nothing, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Nothing:
        return state


def build_selection(config: Config) -> OptimalSampling:
    """The selection a `Config` describes."""
    return OptimalSampling(config)
