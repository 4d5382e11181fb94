"""Probe: chooses the round's cohort, after measuring candidates if the selection requests it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fedloom.core.errors import UnsupportedFeature
from fedloom.core.protocols import Probe
from fedloom.core.records import ClientReport, Exchange, with_examples
from fedloom.core.seeds import generator
from fedloom.server.rounds.cohort import check_clients, collection
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.request import ExchangeRequest, Phase


class ProbePhase(RoundPhase):
    """Sets the round's cohort.

    Args:
        parts: the run's.
        plan: plans the cohort's work with the strategy: before the choice, if candidates train for it.
    """

    def __init__(self, parts: RunParts, plan: Callable[[OpenRound], None]) -> None:
        self._parts, self._plan = parts, plan
        self._name = parts.experiment.selection.name

    def run(self, round: OpenRound) -> None:
        parts, rng = self._parts, generator(self._parts.experiment.seed, "selection", round.number)
        size = parts.experiment.drawn_of(round.roster.population)
        probe = parts.selection.probe(round.selection_state, round.roster, size, rng)
        if probe is None:
            self._choose(round, rng)
            self._plan(round)
            return
        if size > parts.experiment.cohort_of(round.roster.population):
            raise UnsupportedFeature(
                f"selection {self._name!r} measures candidates, which rules out spare clients: remove "
                "round.oversample_fraction and round.reserve_fraction, or choose another selection"
            )
        candidates = check_clients(round, self._name, "probe", probe.candidates)
        round.context = replace(round.context, cohort=candidates)
        if probe.kind == "train":
            self._train_candidates(round, probe, rng)
            return
        self._choose(round, rng, self._measure(round, self._measurement(round, probe), Phase.PROBE))
        self._plan(round)

    def _choose(self, round: OpenRound, rng: np.random.Generator, reports: Sequence[ClientReport] = ()) -> None:
        """Choose the cohort with the selection; it may be empty."""
        size = self._parts.experiment.drawn_of(round.roster.population)
        chosen = self._parts.selection.choose(round.selection_state, round.roster, size, rng, reports)
        round.context = replace(round.context, cohort=check_clients(round, self._name, "choose", chosen))

    def _measurement(self, round: OpenRound, probe: Probe) -> Exchange:
        """Return the exchange that measures candidates on the global model."""
        inputs = self._parts.strategy.model_inputs(round.state)
        return Exchange(
            jobs=round.context.jobs(probe.kind, inputs=tuple(inputs)),
            inputs=inputs,
            knobs=probe.knobs,
            accumulator="metrics",
            measure=probe.measure,
        )

    def _train_candidates(self, round: OpenRound, probe: Probe, rng: np.random.Generator) -> None:
        """Train candidates, whose updates are parked; the round continues with the collection of the chosen ones."""
        self._plan(round)
        if round.exchange is None:
            return
        planned = round.exchange
        knobs = {**planned.knobs, **probe.knobs}
        parked = replace(planned, accumulator="metrics", park=True, measure=probe.measure, knobs=knobs)
        self._choose(round, rng, self._measure(round, parked, Phase.TRAIN))
        round.exchange, round.first_index = collection(planned, round.context.cohort), Phase.TRAIN + 1

    def _measure(self, round: OpenRound, exchange: Exchange, index: int) -> Sequence[ClientReport]:
        if not exchange.jobs:
            return ()
        terms = self._parts.terms(exchange)
        request = ExchangeRequest(round=round.number, index=int(index), exchange=exchange, terms=terms)
        collected = self._parts.collect(request)
        round.count(collected, probe=True)
        return with_examples(collected.reports)
