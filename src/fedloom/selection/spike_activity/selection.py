"""Spike-activity diversity: representatives by how the network fires."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.records import ClientReport
from fedloom.selection._choosing.coverage import cosine, facility_location
from fedloom.selection._choosing.probed import ProbedSelection, among_reporting
from fedloom.selection._choosing.reports import vectors
from fedloom.selection._choosing.sampling import Floats, Indices
from fedloom.selection.spike_activity.config import Config


def pick(reports: Sequence[ClientReport], size: int, rng: np.random.Generator) -> Indices:
    """Start with S empty; m times add the j minimising sum_i min_{s in S + j} sum_l (1 - cos(a_il, a_sl)).

    a_kl are the mean firing rates of layer l's neurons on candidate k's data after its local training. The idea is that
    of public code for client selection in spiking federated learning (FedSNN-ClientSelection, `spike_diversity`), which
    sums the same cosine once per layer and minimises similarity as if it were distance; this is the form it seems to
    mean, our reconstruction.
    """
    activity = vectors(reports, "activity", "spike_activity")
    widths = _widths(reports, activity.shape[1])
    return among_reporting(
        activity, size, lambda reported, places: facility_location(distances(activity[reported], widths), places)
    )


def distances(activity: Floats, widths: Sequence[int]) -> Floats:
    """Pairwise sum over layers of 1 - cos.

    Args:
        activity: rates, layer after layer, float64 [n, sum of widths].
        widths: neurons of each layer.

    Returns:
        float64 [n, n], in [0, layers].
    """
    layers = np.split(activity, np.cumsum(widths)[:-1], axis=1)
    return np.asarray(np.sum([cosine(layer) for layer in layers], axis=0))


def _widths(reports: Sequence[ClientReport], total: int) -> tuple[int, ...]:
    """Return the layer widths most candidates agree on; one layer if no widths fit."""
    lists = [report.info.get("widths") for report in reports]
    reported = [tuple(widths) for widths in lists if isinstance(widths, Sequence)]
    fitting = [widths for widths in reported if all(type(w) is int and w > 0 for w in widths) and sum(widths) == total]
    return max(fitting, key=fitting.count) if fitting else (total,)


def build_selection(config: Config) -> ProbedSelection:
    """Return the selection a `Config` describes."""
    knobs = {"resolution": config.resolution}
    return ProbedSelection(settings=config, kind="train", measure="spike_activity", knobs=knobs, pick=pick)
