"""Top-m by update norm: what SFedCA's credit is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.records import ClientReport
from fedloom.selection._choosing.probed import ProbedSelection
from fedloom.selection._choosing.reports import largest, numbers
from fedloom.selection._choosing.sampling import Indices
from fedloom.selection.update_norm.config import Config


def pick(reports: Sequence[ClientReport], size: int, rng: np.random.Generator) -> Indices:
    """Choose the m candidates with the largest ||w_k - w_t||_2.

    A control, not a published method (`optimal_sampling` is the published one with this signal): it equals
    `firing_credit`'s `topm`, with local training of all d, except for the signal.
    """
    return largest(numbers(reports, "norm", "update_norm"), size)


def build_selection(config: Config) -> ProbedSelection:
    """Return the selection a `Config` describes."""
    return ProbedSelection(settings=config, kind="train", measure="update_norm", pick=pick)
