"""Fed-CBS: clients drawn so that their classes balance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.protocols import Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.balance import imbalance
from fedloom.selection._choosing.candidates import known_labels
from fedloom.selection._choosing.population import extended
from fedloom.selection._choosing.sampling import Floats, weighted
from fedloom.selection.fed_cbs.config import Config

_BALANCED = 1e-6
"""Lower limit of an imbalance: perfectly balanced sets have a finite weight."""


@dataclass(frozen=True, slots=True)
class Times:
    """The number of times each client was chosen; as long as the population, because the rule weighs all of it."""

    round: int
    """Rounds observed so far."""
    times: Floats
    """T_k, float64 [N]."""


class FedCBS(Selection[Times]):
    """Add clients one by one, each with probability proportional to QCID(S + k)^(-beta), beta growing with |S|.

    Zhang et al. 2023, "Fed-CBS: A Heterogeneity-Aware Client Sampling Mechanism for Federated Learning via
    Class-Imbalance Reduction". QCID(S) = sum_c (sum_k n_k q_kc / sum_k n_k - 1/C)² is the quadratic class-imbalance
    degree of the pool. For the first place the weight is QCID^(-beta_1) + lambda sqrt(3 ln t / (2 T_k)). Follows public
    ports; the exact published form was not read. Label counts are read in the clear; the paper hides them behind
    encrypted inner products. Costs O(N C) for each place.
    """

    State = Times

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Times:
        known_labels(roster, "fed_cbs")
        return Times(0, np.zeros(roster.population))

    def choose(
        self,
        state: Times,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        counts = known_labels(roster, "fed_cbs")
        pool, left, picked = np.zeros(counts.shape[1]), np.arange(len(counts)), list[int]()
        for place, exponent in enumerate(np.linspace(self._config.first_exponent, self._config.last_exponent, size)):
            log_weights = -exponent * np.log(np.maximum(imbalance(pool + counts[left]), _BALANCED))
            if place == 0:
                log_weights = np.logaddexp(log_weights, np.log(self._bonus(state) + 1e-300))
            index = int(weighted(log_weights, 1, rng)[0])
            picked.append(int(left[index]))
            pool = pool + counts[left[index]]
            left = np.delete(left, index)
        return tuple(picked)

    def observe(self, state: Times, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Times:
        times = state.times.copy()
        times[[report.client for report in reports]] += 1.0
        return Times(state.round + 1, times)

    def grow(self, state: Times, roster: Roster) -> Times:
        return Times(state.round, extended(state.times, roster.population, 0.0))

    def _bonus(self, state: Times) -> Floats:
        """Lambda sqrt(3 ln t / (2 T_k)); T_k counts from 1, as in the port read."""
        return self._config.exploration * np.sqrt(3.0 * math.log(state.round + 1) / (2.0 * (state.times + 1.0)))


def build_selection(config: Config) -> FedCBS:
    """Return the selection a `Config` describes."""
    return FedCBS(config)
