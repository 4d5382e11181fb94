"""FedCor: choose the clients whose loss is most informative about all clients' losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.population import extended
from fedloom.selection._choosing.reports import losses
from fedloom.selection._choosing.sampling import Floats
from fedloom.selection.fedcor.config import Config
from fedloom.selection.fedcor.covariance import centred, correlated, fit


@dataclass(frozen=True, slots=True)
class Process:
    """The data of the Gaussian process; as long as the population, because the rule correlates all of it."""

    round: int
    """Rounds observed so far."""
    losses: Floats
    """F_k(w) at the last probe, float64 [N]; NaN if unknown."""
    waiting: bool
    """Whether the last probe still waits for the next one, to make a row of changes."""
    changes: Floats
    """Loss changes over one uniform cohort's round each, oldest first; NaN if unknown, float64 [S, N]."""
    rounds: npt.NDArray[np.int64]
    """The rounds they were made in, int64 [S]."""
    alpha: Floats
    """Discounts alpha_k, float64 [N]."""


class FedCor(Selection[Process]):
    """argmax_k (alpha_k / sqrt(Σ_kk)) sum_i p_i Σ_ik, conditioning on each pick; Σ from clients' loss changes.

    Tang et al. 2022, "FedCor: Correlation-Based Active Client Selection Strategy for Heterogeneous Federated Learning",
    with the constants of the published commands. Warm-up rounds have uniform cohorts, and all clients evaluate the
    global model; so does one round in every `refit_every` after it, and the round that follows each of these. A chosen
    client's alpha_k is multiplied by `discount` until the next refit. The covariance is the linear kernel's, fitted in
    closed form (`covariance.fit`) to the changes less their weighted mean; a row's weight is gamma to the power of the
    rounds since. State and costs are O(N): the rule correlates all clients.
    """

    State = Process

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Process:
        n = roster.population
        return Process(0, np.full(n, np.nan), False, np.zeros((0, n)), np.zeros(0, np.int64), np.ones(n))

    def probe(self, state: Process, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        if not (state.waiting or self._is_uniform(state.round + 1)):
            return None
        return Probe(candidates=tuple(range(roster.population)), kind="evaluate")

    def choose(
        self,
        state: Process,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        able = np.array([report.client for report in reports]) if reports else np.arange(roster.population)
        size = min(size, len(able))
        state = self._learn(state, reports)
        if self._is_uniform(state.round + 1) or not len(state.changes):
            return tuple(int(client) for client in able[rng.choice(len(able), size, replace=False)])
        alpha = np.full(roster.population, -np.inf)
        alpha[able] = state.alpha[able]
        sizes = np.asarray(roster.sizes, np.float64) if len(roster.sizes) else np.ones(roster.population)
        weights = np.asarray(self._config.forgetting ** (state.rounds[-1] - state.rounds), np.float64)
        changes = centred(state.changes, weights, around_mean=self._config.update_mean)
        embedding = fit(changes, weights, self._config.dimension, self._config.noise)
        picked = correlated(embedding, self._config.noise, sizes / sizes.sum(), alpha, size)
        return tuple(int(client) for client in picked)

    def observe(self, state: Process, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Process:
        state = self._learn(state, probed)
        uniform = self._is_uniform(state.round + 1)
        alpha = state.alpha.copy()
        if not uniform:
            alpha[[report.client for report in reports]] *= self._config.discount
        return replace(state, round=state.round + 1, waiting=uniform, alpha=alpha)

    def grow(self, state: Process, roster: Roster) -> Process:
        n = roster.population
        return replace(
            state,
            losses=extended(state.losses, n, np.nan),
            changes=np.ascontiguousarray(extended(state.changes.T, n, np.nan).T),
            alpha=extended(state.alpha, n, 1.0),
        )

    def _is_uniform(self, round: int) -> bool:
        """Return whether a round's cohort is drawn uniformly, so that its loss changes train the process."""
        beyond = round - self._config.warm_up
        return beyond <= 0 or beyond % self._config.refit_every == 0

    def _learn(self, state: Process, probed: Sequence[ClientReport]) -> Process:
        """Return the state with a probe's losses and, if the previous round waits for them, its row of changes."""
        if not probed:
            return state
        new = np.full(len(state.losses), np.nan)
        new[[report.client for report in probed]] = losses(probed, "fedcor")
        if not state.waiting:
            return replace(state, losses=new)
        rounds = np.append(state.rounds, state.round)
        changes = np.concatenate([state.changes, (new - state.losses)[None]])
        used = rounds + self._config.history >= state.round
        alpha = np.ones(len(new))
        return replace(state, losses=new, waiting=False, changes=changes[used], rounds=rounds[used], alpha=alpha)


def build_selection(config: Config) -> FedCor:
    """Return the selection a `Config` describes."""
    return FedCor(config)
