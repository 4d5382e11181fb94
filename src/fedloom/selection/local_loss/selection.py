"""Top-m by local loss: what SFedCA's credit is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.records import ClientReport
from fedloom.selection._choosing.probed import ProbedSelection
from fedloom.selection._choosing.reports import largest, losses
from fedloom.selection._choosing.sampling import Indices
from fedloom.selection.local_loss.config import Config


def pick(reports: Sequence[ClientReport], size: int, rng: np.random.Generator) -> Indices:
    """Choose the m candidates with the largest F_k(w_t).

    A control, not a published method: it equals `firing_credit`'s `topm` except for the signal. F_k(w_t) is the
    metric `loss` of the global model on the client's training data, before any local training.
    """
    return largest(losses(reports, "local_loss"), size)


def build_selection(config: Config) -> ProbedSelection:
    """Return the selection a `Config` describes."""
    return ProbedSelection(settings=config, kind="evaluate", pick=pick)
