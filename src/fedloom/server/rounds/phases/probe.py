"""Probe: chooses the round's cohort, after measuring candidates where the selection asks for it, and plans its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedloom.core.errors import RunFailed, UnsupportedFeature
from fedloom.core.events import RoundStarted
from fedloom.core.protocols import Probe
from fedloom.core.records import ClientReport, Exchange
from fedloom.core.seeds import generator
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.request import ExchangeRequest, Phase


class ProbePhase(RoundPhase):
    """Sets the round's cohort, and the exchange it begins with."""

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts

    def run(self, round: OpenRound) -> None:
        parts, rng = self._parts, generator(self._parts.experiment.seed, "selection", round.number)
        size = parts.experiment.num_drawn
        probe = parts.selection.probe(round.selection_state, round.roster, size, rng)
        if probe is None:
            self._choose(round, rng)
            self._plan(round)
            return
        self._check(round, "probe", probe.candidates)
        if size > parts.experiment.cohort_size:
            raise UnsupportedFeature(
                f"selection {parts.experiment.selection.name!r} measures candidates, which leaves no spare clients: "
                "remove round.oversample_fraction and round.reserve_fraction, or choose another selection"
            )
        round.context = replace(round.context, cohort=probe.candidates)
        if probe.kind == "train":
            self._train_candidates(round, probe, rng)
            return
        measurement = self._measurement(round, probe)
        self._choose(round, rng, self._measure(round, measurement, Phase.PROBE) if measurement.jobs else ())
        self._plan(round)

    def _choose(self, round: OpenRound, rng: np.random.Generator, reports: Sequence[ClientReport] = ()) -> None:
        """Have the selection choose the cohort."""
        parts = self._parts
        size = parts.experiment.num_drawn
        cohort = parts.selection.choose(round.selection_state, round.roster, size, rng, reports)
        self._check(round, "choose", cohort)
        round.context = replace(round.context, cohort=tuple(cohort))

    def _check(self, round: OpenRound, method: str, clients: Sequence[int]) -> None:
        """Refuse clients that are not distinct numbers of the roster."""
        wrong = [c for c in clients if not isinstance(c, int) or not 0 <= c < round.roster.population]
        twice = sorted({c for c in clients if clients.count(c) > 1}) if len(set(clients)) < len(clients) else []
        if wrong or twice:
            raise RunFailed(
                f"round {round.number}: {method} of selection {self._parts.experiment.selection.name!r} returned "
                f"{tuple(clients)!r}; expected distinct clients from 0 to {round.roster.population - 1}, found "
                + (f"{wrong!r} beside them" if wrong else f"{twice!r} more than once")
                + f". Correct the selection's {method}"
            )

    def _plan(self, round: OpenRound) -> None:
        """Have the strategy plan what the cohort does first, and report that the round begins."""
        parts = self._parts
        if round.context.cohort:
            round.exchange = parts.strategy.plan(round.state, round.context)
            if round.exchange is None:
                round.wanted = False
                return
            round.exchange = self._with_extra_report(round.exchange, round.selection_state)
        jobs = round.exchange.jobs if round.exchange is not None else ()
        parts.emit(RoundStarted(run_id=parts.run_id, round=round.number, cohort=len(jobs)))

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
        """Let candidates train and park their updates; the round goes on with the collection of the chosen ones."""
        self._plan(round)
        if round.exchange is None:
            return
        planned = round.exchange
        knobs = {**planned.knobs, **probe.knobs}
        parked = replace(planned, accumulator="metrics", park=True, measure=probe.measure, knobs=knobs)
        self._choose(round, rng, self._measure(round, parked, Phase.TRAIN))
        round.exchange = _collection(planned, round.context.cohort) if round.context.cohort else None
        round.first_index = Phase.TRAIN + 1

    def _measure(self, round: OpenRound, exchange: Exchange, index: int) -> Sequence[ClientReport]:
        request = ExchangeRequest(
            round=round.number, index=int(index), exchange=exchange, terms=self._parts.terms(exchange)
        )
        collected = self._parts.collect(request)
        round.count(collected, exchange, probe=True)
        return collected.reports

    def _with_extra_report(self, exchange: Exchange, state: object) -> Exchange:
        """Return the exchange with what the selection wants its clients to report."""
        extra = self._parts.selection.extra_report(state)
        if extra is None:
            return exchange
        if exchange.measure is not None:
            raise UnsupportedFeature(
                f"the selection wants clients to report {extra.measure!r} beside their updates, but this strategy "
                f"already has them report {exchange.measure!r}; use another selection with it"
            )
        return replace(exchange, measure=extra.measure, knobs={**exchange.knobs, **extra.knobs})


def _collection(exchange: Exchange, cohort: Sequence[int]) -> Exchange:
    """Return the exchange that hands over the updates which the chosen candidates have parked."""
    by_client = {job.client: job for job in exchange.jobs}
    if len(by_client) != len(exchange.jobs) or not set(cohort) <= by_client.keys():
        raise UnsupportedFeature(
            "the selection lets candidates train before it chooses, which needs a strategy that plans one job for each "
            "client of the cohort; use another selection with this strategy"
        )
    jobs = tuple(replace(by_client[client], kind="collect") for client in cohort)
    return replace(exchange, jobs=jobs, collects=int(Phase.TRAIN))
