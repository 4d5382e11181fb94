"""Selection by firing credit: SFedCA's choice of clients, usable with any strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport, Info
from fedloom.selection._choosing.candidates import (
    check_population,
    draw_by_examples,
    draw_uniformly,
    known_sizes,
    number_of_candidates,
)
from fedloom.selection._choosing.reports import clients_at, examples, numbers, vectors
from fedloom.selection.firing_credit import rules
from fedloom.selection.firing_credit.config import Config


@dataclass(frozen=True, slots=True)
class Credited:
    """The selection's memory: it affects no choice, except the turn of a cyclic draw."""

    round: int = 0
    """Rounds observed so far."""
    classes: int = 0
    """Output neurons C if the workload declares its classes; 0 if only the reports show them."""
    flagged: Mapping[str, int] = field(default_factory=dict)
    """The number of impossible credits of each client; clients without any are not in it."""


class FiringCredit(Selection[Credited]):
    """d candidates train; m are chosen by how training changed their firing rates.

    A reconstruction from the abstract of "SFedCA: Credit Assignment-Based Active Client Selection Strategy for Spiking
    Federated Learning" (Zhan et al., arXiv 2406.12200): each client's credit comes from its firing intensity before and
    after local training, and aggregated clients should balance the global sample distribution. Layers, norm, d, the
    rule and ties are not in what could be read; each is a setting.

    With r_kc(w) the mean rate of output neuron c on client k's samples: Δ_kc = r_kc(w_k) - r_kc(w_t), credit
    kappa_k = sum_c |Δ_kc|, gain u_kc = n_k max(Δ_kc, 0). The default rule shortlists the 2m largest credits and
    greedily chooses the m whose summed gains are most uniform (`rules.shortlist_balance`); `topm` is the literal
    reading. With d = m the cohort is uniform selection's, order included.
    """

    State = Credited

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Credited:
        check_population(self._config, roster)
        if self._config.candidate_draw == "examples":
            known_sizes(roster, "firing_credit")
        return Credited(classes=len(roster.label_counts[0]) if len(roster.label_counts) else 0)

    def probe(self, state: Credited, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        config = self._config
        return Probe(
            candidates=self._draw(state, roster, number_of_candidates(config, roster, size), rng),
            kind="train",
            measure="firing_credit",
            knobs=config.knobs(gain=self.asks_gains(state)),
        )

    def choose(
        self,
        state: Credited,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        config = self._config
        kappa, gains, flagged = self._read(state, reports)
        kept = rules.choose(
            config.rule,
            kappa,
            None if gains is None else rules.weighted_gains(np.nan_to_num(gains), examples(reports)),
            size,
            rng,
            flagged=flagged,
            shortlist=config.shortlist,
            temperature=config.temperature,
            exploration=config.exploration,
        )
        return clients_at(reports, kept)

    def observe(
        self, state: Credited, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()
    ) -> Credited:
        counts = dict(state.flagged)
        if probed:
            for report, flagged in zip(probed, self._read(state, probed)[2], strict=True):
                if flagged:
                    counts[str(report.client)] = counts.get(str(report.client), 0) + 1
        return Credited(state.round + 1, state.classes, counts)

    def report(self, state: Credited) -> Info:
        """Return data for a round's record: credits flagged so far, in total and by client."""
        return {"flagged_credits": sum(state.flagged.values()), "flagged_clients": dict(state.flagged)}

    def _draw(self, state: Credited, roster: Roster, count: int, rng: np.random.Generator) -> tuple[int, ...]:
        if self._config.candidate_draw == "examples":
            return draw_by_examples(roster, count, rng, "firing_credit")
        if self._config.candidate_draw == "cyclic":
            turn = (state.round * count + rng.permutation(count)) % roster.population
            return tuple(int(client) for client in turn)
        return draw_uniformly(roster, count, rng)

    def asks_gains(self, state: Credited) -> bool:
        """Return whether candidates send their gains: the rule reads them, or they are needed to bound the credit."""
        return self._config.rule in rules.NEEDS_GAINS or not state.classes

    def _read(
        self, state: Credited, reports: Sequence[ClientReport]
    ) -> tuple[rules.Floats, rules.Floats | None, rules.Flags]:
        """Return clipped credits, gains as claimed, and the clients with impossible claims."""
        kappa = numbers(reports, "credit", "firing_credit")
        gains = vectors(reports, "gain", "firing_credit") if self.asks_gains(state) else None
        classes = state.classes if gains is None else gains.shape[1]
        kappa, flagged = rules.sane(kappa, gains, self._config.norm, classes)
        return kappa, gains, flagged


def build_selection(config: Config) -> FiringCredit:
    """Return the selection a `Config` describes."""
    return FiringCredit(config)
