"""Active federated learning: a weighted draw among the clients of highest value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.population import extended
from fedloom.selection._choosing.reports import examples, losses
from fedloom.selection._choosing.sampling import Floats, weighted
from fedloom.selection.afl.config import Config


@dataclass(frozen=True, slots=True)
class Values:
    """Each client's last value; as long as the population, because the rule ranks all of it."""

    values: Floats
    """v_k, float64 [N]; NaN if the client has never reported."""


class ActiveFederatedLearning(Selection[Values]):
    """Drop the share alpha_1 of clients with the lowest v_k = sqrt(n_k) loss_k; draw the cohort from the rest.

    Goetz et al. 2019, "Active Federated Learning"; constants and order of steps as read in the public code of FedCor
    (`federated_main.py`): m - floor((1 - alpha_3) m) clients uniformly, the others one after the other with probability
    proportional to exp(alpha_2 v_k). loss_k is the metric `loss` a client last reported. Costs O(N).
    """

    State = Values

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Values:
        return Values(np.full(roster.population, np.nan))

    def probe(self, state: Values, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        if self._config.first_values == "largest" or not np.isnan(state.values).all():
            return None
        return Probe(candidates=tuple(range(roster.population)), kind="evaluate")

    def choose(
        self,
        state: Values,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        config = self._config
        able = np.array([report.client for report in reports]) if reports else np.arange(roster.population)
        size = min(size, len(able))
        values = _filled(_updated(state.values, reports))[able]
        active = int((1.0 - config.uniform_fraction) * size)
        dropped = min(int(config.dropped_fraction * len(able)), len(able) - active)
        log_weights = config.temperature * values
        log_weights[np.argsort(values, kind="stable")[:dropped]] = -np.inf
        drawn = weighted(log_weights, active, rng)
        others = np.setdiff1d(np.arange(len(able)), drawn)
        uniform = rng.choice(others, size - active, replace=False)
        return tuple(int(client) for client in able[np.concatenate([drawn, uniform])])

    def observe(self, state: Values, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Values:
        return Values(_updated(_updated(state.values, probed), reports))

    def grow(self, state: Values, roster: Roster) -> Values:
        return Values(extended(state.values, roster.population, np.nan))


def _updated(values: Floats, reports: Sequence[ClientReport]) -> Floats:
    """Return the values updated by the reports; a loss that is not finite leaves the value unchanged."""
    if not reports:
        return values
    new = np.sqrt(examples(reports)) * losses(reports, "afl")
    known = np.isfinite(new)
    result = values.copy()
    result[np.array([report.client for report in reports])[known]] = new[known]
    return result


def _filled(values: Floats) -> Floats:
    """Return unknown values as the largest known one, or 0: no client is excluded for never having been selected."""
    known = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, known.max() if known.size else 0.0)


def build_selection(config: Config) -> ActiveFederatedLearning:
    """Return the selection a `Config` describes."""
    return ActiveFederatedLearning(config)
