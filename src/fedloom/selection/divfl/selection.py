"""DivFL: a few clients that represent all, by submodular maximisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.records import ClientReport
from fedloom.selection._choosing.coverage import euclidean, facility_location
from fedloom.selection._choosing.probed import ProbedSelection, among_reporting
from fedloom.selection._choosing.reports import vectors
from fedloom.selection._choosing.sampling import Indices
from fedloom.selection.divfl.config import Config


def pick(reports: Sequence[ClientReport], size: int, rng: np.random.Generator) -> Indices:
    """Start with S empty; m times add the j that minimises sum_i min_{s in S + j} ||g_i - g_s||, i over candidates.

    Balakrishnan, Li, Zhou, Himayat, Smith, Bilmes 2022, "Diverse Client Selection for Federated Learning via Submodular
    Maximization" (greedy facility location, as read in the public code's `greedy`). g_k is the candidate's local change
    w_k - w_t, or a sketch of it that preserves distances.
    """
    moved = vectors(reports, "update", "divfl")
    return among_reporting(moved, size, lambda reported, places: facility_location(euclidean(moved[reported]), places))


def build_selection(config: Config) -> ProbedSelection:
    """Return the selection a `Config` describes."""
    return ProbedSelection(settings=config, kind="train", measure="divfl", knobs={"sketch": config.sketch}, pick=pick)
