"""Train: the strategy's plan, its exchanges one after another, and its next state."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.accumulators import Accumulator, is_finite
from fedloom.core.errors import FedloomError, RunFailed, UnsupportedFeature
from fedloom.core.events import Notice, RoundStarted
from fedloom.core.protocols import Pending
from fedloom.core.records import Exchange
from fedloom.core.state import arrays_in
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.cohort import with_extra_report, without_examples
from fedloom.server.rounds.counts import RoundCounts
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.rounds.request import ExchangeRequest, Phase

_MOST = 1000
"""Limit of exchanges in a round."""


class TrainPhase(RoundPhase):
    """Advances the strategy's state. An empty cohort leaves it unchanged."""

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts

    def plan(self, round: OpenRound) -> None:
        """Plan the cohort's first exchange with the strategy, and report that the round begins."""
        parts = self._parts
        if round.context.cohort:
            planned = parts.strategy.plan(round.state, round.context)
            if planned is None:
                round.wanted = False
                return
            round.exchange = with_extra_report(planned, parts.selection.extra_report(round.selection_state))
        jobs = round.exchange.jobs if round.exchange is not None else ()
        parts.emit(RoundStarted(run_id=parts.run_id, round=round.number, cohort=len(jobs)))

    def run(self, round: OpenRound) -> None:
        self._exchanges(round)
        if round.retrained:
            round.add_section("parking", {"retrained": round.retrained})

    def _exchanges(self, round: OpenRound) -> None:
        """Run exchanges until the strategy plans no more."""
        exchange, begun = round.exchange, round.state
        for index in range(round.first_index, round.first_index + _MOST):
            if exchange is None:
                return
            total = self._collect(round, exchange, index)
            if not total.count and exchange.quorum_fraction != 0.0:
                round.state = begun
                self._parts.emit(Notice(run_id=self._parts.run_id, message=without_examples(round)))
                return
            exchange = self._step(round, total)
        if exchange is not None:
            name = self._parts.experiment.strategy.name
            raise RunFailed(f"strategy {name!r} planned {_MOST} exchanges in round {round.number}")

    def _collect(self, round: OpenRound, exchange: Exchange, index: int) -> Accumulator:
        """Run one exchange; returns its sum, which has no update where none of the clients has examples."""
        terms = self._terms(round, exchange, index)
        request = ExchangeRequest(round=round.number, index=index, exchange=exchange, terms=terms)
        collected = self._parts.collect(request)
        round.count(collected)
        if terms.quota < len(exchange.jobs):
            round.sampled, round.superseded = list(collected.sampled), list(collected.superseded)
        return collected.total

    def _step(self, round: OpenRound, total: Accumulator) -> Exchange | None:
        """Finish an exchange with the strategy; returns the next one, None when the round is over."""
        begin = self._parts.monotonic()
        step = self._finish(round, total)
        round.counts += RoundCounts(aggregation_s=self._parts.monotonic() - begin)
        round.state = step.state if isinstance(step, Pending) else step
        self._check_finite(round)
        return step.exchange if isinstance(step, Pending) else None

    def _finish(self, round: OpenRound, total: Accumulator) -> object | Pending[object]:
        try:
            return self._parts.strategy.finish(round.state, total, round.context)
        except FedloomError:
            raise
        except Exception as exc:
            raise RunFailed(
                f"strategy {self._parts.experiment.strategy.name!r} failed to aggregate round {round.number}: "
                f"{type(exc).__name__}: {exc}. The run can be resumed from round {round.number - 1}"
            ) from exc

    def _check_finite(self, round: OpenRound) -> None:
        """Refuse a state with NaN or infinity in it: nothing of it is saved, sent or trained on.

        Raises:
            RunFailed: names the arrays.
        """
        odd = [f"{name!r} of {field}" for field, name, array in arrays_in(round.state) if not is_finite(array)]
        if odd:
            raise RunFailed(
                f"round {round.number}: after aggregation {len(odd)} arrays of the state of strategy "
                f"{self._parts.experiment.strategy.name!r} are not finite (NaN or infinity), such as {odd[0]}. Nothing "
                f"of them was saved; the run can be resumed from round {round.number - 1}"
            )

    def _terms(self, round: OpenRound, exchange: Exchange, index: int) -> ClosingTerms:
        """Return the exchange's closing terms; in the first one, clients beyond the cohort's size are spares."""
        run = self._parts.terms(exchange)
        terms = replace(
            run,
            quorum_fraction=run.quorum_fraction if exchange.quorum_fraction is None else exchange.quorum_fraction,
            deadline_s=exchange.deadline_s or run.deadline_s,
        )
        experiment, population = self._parts.experiment, round.roster.population
        size = experiment.cohort_of(population)
        extra = len(round.context.cohort) - size
        if index != Phase.TRAIN or extra <= 0 or experiment.drawn_of(population) == size:
            return terms
        if [job.client for job in exchange.jobs] != list(round.context.cohort):
            raise UnsupportedFeature(
                "spare clients require a strategy that plans one job for each client of the cohort, in order; remove "
                "round.oversample_fraction and round.reserve_fraction, or use another strategy"
            )
        return replace(terms, quota=size, reserve=max(0, extra - experiment.oversampled_of(population)))
