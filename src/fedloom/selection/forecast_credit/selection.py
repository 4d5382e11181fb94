"""Selection by forecast credit: who would teach the model what it lacks, asked without training anybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedloom.core.protocols import Probe, Roster
from fedloom.core.records import ClientReport, Info
from fedloom.selection._choosing.candidates import check_population, draw_uniformly, number_of_candidates
from fedloom.selection.firing_credit import rules
from fedloom.selection.forecast_credit.config import Config
from fedloom.selection.forecast_credit.memory import Forecasts, told


class ForecastCredit:
    """SFedCA's choice with the credit forecast instead of measured: candidates pass their data forward once.

    Ours. With softmax cross-entropy, local training moves output c to first order by a multiple of
    e_kc = mean over client k's examples of (1[y = c] - p_c(x; w_t)): what the client holds of class c minus what the
    global model answers there. So e_k stands in for the change of rates Delta_k of `firing_credit`: credit
    kappa_k = sum_c |e_kc|, gain u_kc = n_k max(e_kc, 0), and the same rules on them. A candidate costs a forward pass
    and C floats; only the m chosen train. With `remember_rounds` a report serves for several rounds, so that in the end
    nearly nobody is asked. Works with any workload that has `class_errors`, spiking or not.
    """

    State = Forecasts

    def __init__(self, config: Config) -> None:
        self._config = config

    def init(self, roster: Roster) -> Forecasts:
        check_population(self._config, roster)
        return Forecasts()

    def probe(self, state: Forecasts, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        count = number_of_candidates(self._config, roster, size)
        known = self._good(state).clients
        # Those known may stand in for those not asked, but there have to be enough for a cohort.
        asked = min(count, max(self._config.asked or count, size - len(known)))
        if len(known):
            strangers = np.setdiff1d(np.arange(roster.population), known)
            drawn = rng.choice(strangers, min(asked, len(strangers)), replace=False)
            candidates = tuple(int(client) for client in drawn)
        else:
            candidates = draw_uniformly(roster, asked, rng)
        return Probe(candidates=candidates, kind="measure", measure="forecast_credit") if candidates else None

    def choose(
        self,
        state: Forecasts,
        roster: Roster,
        size: int,
        rng: np.random.Generator,
        reports: Sequence[ClientReport] = (),
    ) -> tuple[int, ...]:
        config, good = self._config, self._good(state)
        fresh, flagged = told(reports, state.round)
        places = number_of_candidates(config, roster, size) - len(reports)
        among = good.at(rng.permutation(len(good.clients))[:places]).after(fresh)
        faded = among.gains * config.decay ** (state.round - among.made)[:, None]
        nothing = np.zeros(faded.shape[1])
        kept = rules.choose(
            config.rule,
            np.array([rules.credits(nothing, gain, config.norm) for gain in faded]),
            rules.weighted_gains(faded, among.num_examples),
            size,
            rng,
            flagged=np.pad(flagged, (0, len(among.clients) - len(flagged))),
            shortlist=config.shortlist,
            temperature=config.temperature,
            exploration=config.exploration,
        )
        return tuple(int(client) for client in among.clients[kept])

    def observe(
        self, state: Forecasts, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()
    ) -> Forecasts:
        fresh, flagged = told(probed, state.round)
        counts = dict(state.flagged)
        for client in fresh.clients[flagged]:
            counts[str(client)] = counts.get(str(client), 0) + 1
        if not self._config.remember_rounds:
            return Forecasts(round=state.round + 1, flagged=counts)
        kept = self._good(state).after(fresh.at(np.flatnonzero(~flagged)))
        return replace(kept, round=state.round + 1, flagged=counts)

    def report(self, state: Forecasts) -> Info:
        """What a round's record may tell: how many reports are remembered, and those flagged so far."""
        return {"remembered": len(state.clients), "flagged_credits": sum(state.flagged.values())}

    def _good(self, state: Forecasts) -> Forecasts:
        """The remembered reports that may still be used."""
        return state.at(np.flatnonzero(state.round - state.made <= self._config.remember_rounds))


def build_selection(config: Config) -> ForecastCredit:
    """The selection a `Config` describes."""
    return ForecastCredit(config)
