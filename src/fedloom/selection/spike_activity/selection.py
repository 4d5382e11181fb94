"""Spike-activity diversity: representatives by how the network fires."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.candidates import check_population, draw_uniformly, number_of_candidates
from fedloom.selection._choosing.coverage import cosine, facility_location
from fedloom.selection._choosing.reports import clients_at, vectors
from fedloom.selection._choosing.sampling import Floats
from fedloom.selection.spike_activity.config import Config
from fedloom.selection.uniform.selection import Nothing


class SpikeActivity:
    """Start with S empty; m times add the j minimising sum_i min_{s in S + j} sum_l (1 - cos(a_il, a_sl)).

    a_kl are the mean firing rates of layer l's neurons on candidate k's data after its local training. The idea is that
    of public code for client selection in spiking federated learning (FedSNN-ClientSelection, `spike_diversity`), which
    sums the same cosine once per layer and minimises similarity as if it were distance; this is the form it seems to
    mean, our reconstruction.
    """

    State = Nothing

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Nothing:
        check_population(self._config, roster)
        return Nothing()

    def probe(self, state: Nothing, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        count = number_of_candidates(self._config, roster, size)
        return Probe(
            candidates=draw_uniformly(roster, count, rng),
            kind="train",
            measure="spike_activity",
            knobs={"resolution": self._config.resolution},
        )

    def choose(
        self,
        state: Nothing,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        activity = vectors(reports, "activity", "spike_activity")
        told = np.flatnonzero(np.isfinite(activity).all(axis=1))
        widths = _widths(reports, activity.shape[1])
        picked = told[facility_location(distances(activity[told], widths), min(size, len(told)))]
        rest = np.setdiff1d(np.arange(len(reports)), told)[: size - len(picked)]
        return clients_at(reports, np.concatenate([picked, rest]))

    def observe(self, state: Nothing, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Nothing:
        return state


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
    """The layers most candidates agree on; one layer where nobody's widths fit."""
    lists = [report.info.get("widths") for report in reports]
    told = [tuple(widths) for widths in lists if isinstance(widths, Sequence)]
    fitting = [widths for widths in told if all(type(w) is int and w > 0 for w in widths) and sum(widths) == total]
    return max(fitting, key=fitting.count) if fitting else (total,)


def build_selection(config: Config) -> SpikeActivity:
    """The selection a `Config` describes."""
    return SpikeActivity(config)
