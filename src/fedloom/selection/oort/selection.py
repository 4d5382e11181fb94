"""Oort: guided participant selection, the statistical part by default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.protocols import Roster, Selection
from fedloom.core.records import ClientReport
from fedloom.selection._choosing.population import extended
from fedloom.selection._choosing.reports import examples, losses
from fedloom.selection._choosing.sampling import Floats, Indices, weighted
from fedloom.selection.oort.config import Config


@dataclass(frozen=True, slots=True)
class Arms:
    """Knowledge of each client; as long as the population, because the rule scores or explores all of it."""

    round: int
    """Rounds observed so far."""
    utility: Floats
    """n_k times its mean loss when last seen, float64 [N]."""
    seen: Floats
    """The round a client was last seen in, float64 [N]; 0 never."""
    seconds: Floats
    """Duration of its last job, seconds, float64 [N]; 0 if never seen."""


def scores(utility: Floats, seen: Floats, round: int, clip_quantile: float, unseen: Floats | None = None) -> Floats:
    """Normalised, clipped utility plus the bonus of age, for clients seen before.

    (min(U, clip) - U_min) / (U_max - U_min) + sqrt(0.1 ln t / L), as read in the public code (`getTopK`, `get_norm`):
    clip is the value at index floor(clip_quantile * n) of the sorted rewards, U_min is 0.999 times the smallest, the
    range is at least 1e-4. Rewards are the positive utilities and, of clients never seen, their number of examples.

    Args:
        utility: U_k, float64 [n].
        seen: L_k, the round each was last seen in, >= 1, float64 [n].
        round: t, the round to choose for.
        clip_quantile: in [0, 1].
        unseen: n_k of the clients never seen, float64; None if unknown.

    Returns:
        float64 [n].
    """
    rewards = utility if unseen is None else np.concatenate([utility, unseen])
    order = np.sort(rewards[rewards > 0]) if (rewards > 0).any() else np.zeros(1)
    clip = order[min(int(len(order) * clip_quantile), len(order) - 1)]
    low = order[0] * 0.999
    reward = (np.minimum(utility, clip) - low) / max(order[-1] - low, 1e-4)
    return np.asarray(reward + np.sqrt(0.1 * math.log(round) / seen))


class Oort(Selection[Arms]):
    """Exploit the clients of high utility, explore those never seen, a share epsilon that decays.

    Lai, Zhu, Madhyastha, Chowdhury 2021, "Oort: Efficient Federated Learning via Guided Participant Selection";
    constants and steps as read in the public code (`oort/oort.py`). Utility U_k = n_k sqrt(mean of squared losses),
    of which a report allows the bound n_k * mean loss. A slow client's score is multiplied by (T / t_k)^alpha. Those
    whose score is at least `cut_off` times that of the first one past the exploited places take part in a draw with
    probability proportional to score; unseen ones are drawn in proportion to n_k among the largest. Costs O(N).
    """

    State = Arms

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Arms:
        return Arms(0, *(np.zeros(roster.population) for _ in range(3)))

    def choose(
        self,
        state: Arms,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        unseen = np.flatnonzero(state.seen == 0)
        exploited = self._exploit(state, size, unseen, roster, rng)
        explored = self._explore(unseen, roster, size - len(exploited), rng)
        picked = np.concatenate([exploited, explored])
        others = np.setdiff1d(np.arange(roster.population), picked)
        rest = rng.choice(others, size - len(picked), replace=False)
        return tuple(int(client) for client in np.concatenate([picked, rest]))

    def observe(self, state: Arms, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Arms:
        utility, seen, seconds = state.utility.copy(), state.seen.copy(), state.seconds.copy()
        if reports:
            clients = np.array([report.client for report in reports])
            new = examples(reports) * losses(reports, "oort")
            utility[clients[np.isfinite(new)]] = new[np.isfinite(new)]
            seen[clients] = state.round + 1
            seconds[clients] = [report.seconds for report in reports]
        return Arms(state.round + 1, utility, seen, seconds)

    def grow(self, state: Arms, roster: Roster) -> Arms:
        known = (state.utility, state.seen, state.seconds)
        return Arms(state.round, *(extended(values, roster.population, 0.0) for values in known))

    def _exploit(self, state: Arms, size: int, unseen: Indices, roster: Roster, rng: np.random.Generator) -> Indices:
        """Return the places filled by score, in the order drawn."""
        config, seen = self._config, np.flatnonzero(state.seen)
        decayed = config.exploration * config.exploration_decay ** (state.round + 1)
        epsilon = max(decayed, config.exploration_min) if len(unseen) else 0.0
        places = min(int(size * (1.0 - epsilon)), len(seen))
        if not places:
            return seen[:0]
        sizes = np.asarray(roster.sizes, np.float64)[unseen] if len(roster.sizes) else None
        value = scores(state.utility[seen], state.seen[seen], state.round + 1, config.clip_quantile, sizes)
        if config.preferred_duration_percentile < 100.0:
            value = value * self._slowness(state.seconds[seen])
        order = np.argsort(-value, kind="stable")
        threshold = config.cut_off * value[order[min(places, len(order) - 1)]]
        pool = order[: max(places, int((value >= threshold).sum()))]
        drawn = weighted(np.log(np.maximum(value[pool], 1e-12)), places, rng)
        return seen[pool[drawn]]

    def _slowness(self, seconds: Floats) -> Floats:
        """Return (T / t_k)^alpha if t_k is above the preferred duration T, otherwise 1."""
        order = np.sort(seconds)
        preferred = order[min(int(len(order) * self._config.preferred_duration_percentile / 100), len(order) - 1)]
        return np.asarray(np.minimum(1.0, preferred / np.maximum(seconds, 1e-4)) ** self._config.slowness_penalty)

    def _explore(self, unseen: Indices, roster: Roster, places: int, rng: np.random.Generator) -> Indices:
        """Fill places with clients never seen, large ones first if sizes are known."""
        places = min(places, len(unseen))
        sizes = np.asarray(roster.sizes, np.float64) if len(roster.sizes) else np.ones(roster.population)
        order = unseen[rng.permutation(len(unseen))]
        if len(roster.sizes):
            order = order[np.argsort(-sizes[order], kind="stable")][: int(self._config.exploration_window * places)]
        return order[weighted(np.log(np.maximum(sizes[order], 1e-12)), places, rng)]


def build_selection(config: Config) -> Oort:
    """Return the selection a `Config` describes."""
    return Oort(config)
