"""Selection by predicted credit: what training a client would change, known without training it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedloom.core.errors import ConfigError
from fedloom.core.protocols import ExtraReport, Probe, Roster, Selection
from fedloom.core.records import ClientReport, Info
from fedloom.selection._choosing.candidates import check_population, number_of_candidates
from fedloom.selection._choosing.population import extended
from fedloom.selection._choosing.reports import examples, vectors
from fedloom.selection._choosing.sampling import Floats, Indices
from fedloom.selection.firing_credit import rules
from fedloom.selection.predicted_credit.config import Config

Rounds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Memory:
    """The clients' reports; as long as the population, because any client may be chosen by its report."""

    round: int
    """Rounds observed so far."""
    gains: Floats
    """Each client's last gain, float64 [N, C]; NaN if unknown. If the workload does not declare its classes, C is
    0 before the first report."""
    examples: Floats
    """n_k, float64 [N]; 0 if unknown."""
    reported: Rounds
    """The round whose model the gain is about, int64 [N]; 0 never."""
    asked: Rounds
    """The round each client was last selected in, int64 [N]; 0 never. Above `reported` if its update is missing."""
    flagged: Mapping[str, int] = field(default_factory=dict)
    """The number of impossible gains of each client."""


class PredictedCredit(Selection[Memory]):
    """Choose the m whose predicted gains are jointly most uniform, of d candidates that need not train first.

    Ours; a cheap stand-in for SFedCA's credit (`firing_credit`). With softmax cross-entropy on the output z the mean
    gradient on z_c over client k's data is E[softmax(z)_c] - q_kc, q_k its label shares, so that to first order local
    training raises class c in proportion to g_kc = q_kc - E[softmax(z)_c]: the sign and the classes of SFedCA's
    firing-rate change, for one forward pass. Clients report g_k when they train anyway, on the model they were sent; it
    is remembered (g_k times decay^age), so that a choice among d candidates costs m downlinks, m trainings and
    m (P + C) values up. The rule is SFedCA's: gains u_kc = n_k max(g_kc, 0), balanced greedily (`rules.balance_all`).
    """

    State = Memory

    def __init__(self, config: Config) -> None:
        if config.credit == "change" and config.preview:
            raise ConfigError(
                f'selection.preview: {config.preview}, but credit = "change" is known only after training. Set '
                'selection.credit = "error", or preview = 0'
            )
        self._config = config

    def init(self, roster: Roster) -> Memory:
        check_population(self._config, roster)
        never = np.zeros(roster.population, np.int64)
        classes = len(roster.label_counts[0]) if len(roster.label_counts) else 0
        gains = np.full((roster.population, classes), np.nan)
        return Memory(0, gains, np.zeros(roster.population), never, never)

    def extra_report(self, state: Memory) -> ExtraReport:
        """Return the request that every client of the cohort reports its gain."""
        if self._config.credit == "error":
            return ExtraReport(measure="predicted_credit")
        return ExtraReport(measure="firing_credit", knobs={"norm": "l1", "layers": "output", "gain": True})

    def probe(self, state: Memory, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        if not self._config.preview:
            return None
        candidates = self._drawn(
            state, np.arange(roster.population), number_of_candidates(self._config, roster, size), rng
        )
        unknown = candidates[~self._known(state)[candidates]][: self._config.preview]
        if not len(unknown):
            return None
        return Probe(candidates=tuple(int(k) for k in unknown), kind="measure", measure="predicted_credit")

    def choose(
        self,
        state: Memory,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        count = number_of_candidates(self._config, roster, size)
        state = self._learn(state, reports)
        previewed = np.array([report.client for report in reports[:count]], np.intp)
        others = self._drawn(state, np.setdiff1d(np.arange(roster.population), previewed), count - len(previewed), rng)
        candidates = np.concatenate([previewed, others])
        known = self._known(state)[candidates]
        first = candidates[:0]
        if not self._config.preview:
            fresh = ~known & (state.asked[candidates] <= state.reported[candidates])
            first, candidates = candidates[fresh][:size], candidates[~fresh]
        kept = candidates[self._ruled(state, candidates, size - len(first))]
        return tuple(int(client) for client in np.concatenate([first, kept]))

    def observe(self, state: Memory, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> Memory:
        state = self._learn(self._learn(state, probed), reports)
        asked = state.asked.copy()
        asked[[report.client for report in reports]] = state.round + 1
        return replace(state, round=state.round + 1, asked=asked)

    def missed(self, state: Memory, clients: Sequence[int]) -> Memory:
        """Move clients whose update is missing in the round just observed to the end of the queue."""
        asked = state.asked.copy()
        asked[list(clients)] = state.round
        return replace(state, asked=asked)

    def grow(self, state: Memory, roster: Roster) -> Memory:
        n = roster.population
        return replace(
            state,
            gains=extended(state.gains, n, np.nan),
            examples=extended(state.examples, n, 0.0),
            reported=extended(state.reported, n, 0),
            asked=extended(state.asked, n, 0),
        )

    def report(self, state: Memory) -> Info:
        """Return data for a round's record: clients whose gain is known, and impossible gains."""
        return {"known_clients": int(self._known(state).sum()), "flagged_credits": sum(state.flagged.values())}

    def _drawn(self, state: Memory, among: Indices, count: int, rng: np.random.Generator) -> Indices:
        """Return `count` of these clients in draw order: those selected longest ago, or any."""
        order = rng.permutation(among)
        if self._config.candidate_draw == "stalest":
            order = order[np.argsort(state.asked[order], kind="stable")]
        return order[:count]

    def _known(self, state: Memory) -> npt.NDArray[np.bool_]:
        """Return which clients' gains are known and recent enough, for the round after `state.round`."""
        if self._config.memory is None:
            return state.reported > 0
        return (state.reported > 0) & (state.round + 1 - state.reported <= self._config.memory)

    def _ruled(self, state: Memory, candidates: Indices, size: int) -> Indices:
        """Return the places of the chosen candidates, in draw order.

        A client without a report counts as the mean of the known; with previews, the unknown wait for one.
        """
        known = self._known(state)[candidates]
        if size >= len(candidates) or not known.any():
            return np.arange(min(size, len(candidates)))
        age = np.maximum(state.round + 1 - state.reported[candidates], 0)
        gains = rules.weighted_gains(np.nan_to_num(state.gains[candidates]), state.examples[candidates])
        gains *= self._config.decay ** age[:, None]
        gains[~known] = 0.0 if self._config.preview else gains[known].mean(axis=0)
        if self._config.rule != "shortlist-balance":
            return np.sort((rules.cover if self._config.rule == "cover" else rules.balance_all)(gains, size))
        return np.sort(rules.shortlist_balance(gains.sum(axis=1), gains, size, self._config.shortlist))

    def _learn(self, state: Memory, reports: Sequence[ClientReport]) -> Memory:
        """Return the state updated by reports about the model of the round after `state.round`."""
        with_gain = [report for report in reports if "gain" in report.info]
        if not with_gain:
            return state
        reported = vectors(with_gain, "gain", "predicted_credit", state.gains.shape[1] or None)
        sane = rules.possible(reported)
        gains = state.gains if state.gains.shape[1] else np.full((len(state.reported), reported.shape[1]), np.nan)
        clients = np.array([report.client for report in with_gain])
        gains, sizes, at = gains.copy(), state.examples.copy(), state.reported.copy()
        gains[clients[sane]], sizes[clients[sane]] = reported[sane], examples(with_gain)[sane]
        at[clients[sane]] = state.round + 1
        flagged = dict(state.flagged)
        for client in clients[~sane].tolist():
            flagged[str(client)] = flagged.get(str(client), 0) + 1
        return replace(state, gains=gains, examples=sizes, reported=at, flagged=flagged)


def build_selection(config: Config) -> PredictedCredit:
    """Return the selection a `Config` describes."""
    return PredictedCredit(config)
