"""One exchange from the server's side: jobs out in fixed groups, results aggregated in order until it closes."""

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedloom.core.accumulators import Accumulator, RunningMean
from fedloom.core.errors import BadUpdate, QuorumNotReached, RunFailed
from fedloom.core.events import ClientLost, ClientsDone, NodeRefused, Notice
from fedloom.core.messages import MAX_NOTICES
from fedloom.core.plugins import accumulator_class
from fedloom.core.records import MODEL, ClientReport, Record
from fedloom.server.fleet.open_exchange import Answer, OpenExchange
from fedloom.server.fleet.planned import PlannedExchange, RunFacts
from fedloom.server.fleet.vetting import SumTerms, vet_sum
from fedloom.server.rounds.closing import Closing
from fedloom.server.rounds.counts import Collected, RoundCounts
from fedloom.server.rounds.grouping import GroupPlanner
from fedloom.server.rounds.kept_answers import KeptAnswers
from fedloom.server.rounds.model_dtypes import ModelDtypes
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.rounds.run_services import FleetAccess, RunOutputs
from fedloom.server.rounds.wait_notices import WaitNotices
from fedloom.server.rounds.waiting import Waiting


class Collector:
    """Runs the exchanges of one run.

    Args:
        run: the run's facts.
        fleet: the way to the agents.
        outputs: where states, answers and events go.
        stop: when set, an exchange in progress ends with `Interrupted`.
    """

    def __init__(self, run: RunFacts, fleet: FleetAccess, outputs: RunOutputs, stop: threading.Event) -> None:
        self._run, self._fleet, self._outputs = run, fleet, outputs
        self.groups = GroupPlanner(run, outputs.store)
        """Knows what clients hold from earlier exchanges."""
        self._dtypes = ModelDtypes()
        self._noticed: set[str] = set()
        resume = f"run {run.run_id} was stopped; go on with it: fedloom resume {outputs.store.folder}"
        workload = run.spec.experiment.get("workload", {})
        work = f"the work is that of workload {workload.get('name', '')!r}"
        notices = WaitNotices(run.run_id, work, outputs.emit, fleet.clock)
        self._waiting = Waiting(fleet, stop, resume, notices)

    def collect(self, request: ExchangeRequest) -> Collected:
        """Put the exchange's jobs out and aggregate what comes back.

        Raises:
            ClientFailed, QuorumNotReached: too few clients answered; the message says why each is missing.
            NoCapacity: no agent is there to do the work.
            BadUpdate: updates that cannot be aggregated together.
            RunFailed: the model has another dtype than before, or the exchange names inputs it has not, or knobs that
                are not JSON.
            Interrupted: the run was asked to stop.
        """
        self._dtypes.check(request.round, request.exchange)
        if self._run.min_nodes > 1:
            self._waiting.for_nodes(self._run.min_nodes, self._run.labels)
        grouping, exchange = self.groups.cut(request), request.exchange
        kind = accumulator_class(exchange.accumulator)
        kept = KeptAnswers(self._outputs.journal, request, grouping.groups)
        planned = PlannedExchange(
            run=self._run,
            round=request.round,
            index=request.index,
            exchange=exchange,
            groups=grouping.groups,
            reserve=grouping.reserve,
            answered=kept.answers.keys(),
            vet=functools.partial(vet_sum, kind, exchange.inputs.get(MODEL)),
            terms=SumTerms.of(kind, exchange, by_examples=self._run.by_examples, parts=len(exchange.jobs)),
            run_acknowledges=kept.enabled,
        )
        with self._fleet.coordinator.exchange(planned) as opened:
            closing = Closing(planned, request.terms, self._fleet.clock)
            gathering = _Gathering(request, opened, closing, Aggregation(kind, request.round, grouping.span), kept)
            try:
                return self._gather(gathering)
            except BadUpdate:
                kept.drop()
                raise
            finally:  # a round that fails reports its missing updates, too
                for failure in closing.failures if request.emit_progress else ():
                    self._outputs.emit(ClientLost(run_id=self._run.run_id, failure=failure))
                self._report_refusals(gathering)

    def _gather(self, gathering: _Gathering) -> Collected:
        """Take answers until the exchange closes."""
        clock, opened, closing = self._fleet.clock, gathering.opened, gathering.closing
        for answer in gathering.kept.answers.values():
            opened.answers.put(answer)
        counts = RoundCounts(restored=len(gathering.kept.answers))
        while closing.open:
            begin = clock.monotonic()
            next_answer = self._waiting.next(opened, closing, functools.partial(self._report_refusals, gathering))
            came = clock.monotonic()
            if next_answer is not None:
                self._take(gathering, next_answer)
            elif (terms := gathering.request.terms).asks_another:
                for index in closing.extend():
                    self._fleet.coordinator.ask_another(opened, index, terms.deadline_s or 0.0)
            else:
                closing.expire(self._fleet.coordinator.holders(opened))
            counts += RoundCounts(waiting_s=came - begin, aggregation_s=clock.monotonic() - came)
        for unfit in gathering.aggregation.take_rest():
            closing.discard(unfit.answer, unfit.reason)
        total = gathering.aggregation.finish()
        return Collected(
            total=total,
            reports=tuple(gathering.aggregation.reports),
            counts=replace(
                counts,
                duplicates=opened.duplicates,
                reassigned=opened.reassigned,
                failures=tuple(closing.failures),
                refusals={node: refusal.reason for node, refusal in opened.refusals.items()},
            ),
            sampled=closing.sampled(),
            superseded=closing.superseded(),
        )

    def _take(self, gathering: _Gathering, answer: Answer) -> None:
        """Count one answer, aggregate it, and keep what outlives the exchange."""
        request, opened, closing = gathering.request, gathering.opened, gathering.closing
        if request.no_answer is not None and (answer.result is None or answer.result.failures):
            raise request.no_answer(opened, answer)
        released = closing.take(answer)
        for unfit in gathering.aggregation.take(answer):
            released += closing.discard(unfit.answer, unfit.reason)
        if released:
            self._fleet.coordinator.release(opened, released)
        for client, state in answer.states.items():
            self._outputs.store.save_client(client, request.round, request.index, state)
        if gathering.kept.keep(answer):
            self._fleet.coordinator.acknowledge(opened, answer.index)
        self.groups.learn(request, answer, opened.groups[answer.index].jobs)
        self._report_notices(answer)
        if request.emit_progress:
            done, wanted = len(gathering.aggregation.reports), request.terms.quota
            self._outputs.emit(ClientsDone(run_id=self._run.run_id, round=request.round, done=done, cohort=wanted))

    def _report_notices(self, answer: Answer) -> None:
        """Emit what a node wants the user to know, each text once in a run."""
        for notice in answer.result.notices if answer.result is not None else ():
            if notice not in self._noticed and len(self._noticed) < MAX_NOTICES:
                self._noticed.add(notice)
                self._outputs.emit(Notice(run_id=self._run.run_id, message=f"node {answer.node}: {notice}"))

    def _report_refusals(self, gathering: _Gathering) -> None:
        """Report nodes that would not or could not take part, each once for each kind of reason."""
        for node, refusal in list(gathering.opened.refusals.items()):  # the coordinator may add to them meanwhile
            if (node, refusal.kind) not in gathering.reported:
                gathering.reported.add((node, refusal.kind))
                self._outputs.emit(
                    NodeRefused(
                        run_id=self._run.run_id,
                        round=gathering.request.round,
                        node=node,
                        kind=refusal.kind,
                        reason=refusal.reason,
                    )
                )


class Unfit(NamedTuple):
    """A group's answer that does not fit those before it."""

    answer: Answer
    reason: BadUpdate


class Aggregation:
    """One exchange's updates, aggregated in group order.

    Args:
        kind: the accumulator's class.
        round: for messages.
        span: consecutive groups that are summed apart before they join the total: sums then have the same bits as if
            those groups had been one.
    """

    def __init__(self, kind: type[Accumulator], round: int, span: int = 1) -> None:
        self._kind, self._round, self._span = kind, round, span
        self._part, self._part_index = kind(), 0
        self._early: dict[int, Answer] = {}
        self._next = 0
        self.total: Accumulator = kind()
        """Everything aggregated so far."""
        self.reports: list[ClientReport] = []
        """In cohort order."""

    def take(self, answer: Answer) -> list[Unfit]:
        """Take one group's answer, and aggregate every group whose turn it is; returns those that do not fit.

        Raises:
            BadUpdate: the sum was changed by one that does not fit, which only an accumulator of a plug-in does.
        """
        self._early[answer.index] = answer
        unfit: list[Unfit] = []
        while self._next in self._early:
            unfit += self._merge(self._early.pop(self._next))
            self._next += 1
        return unfit

    def take_rest(self) -> list[Unfit]:
        """Aggregate what waited for groups that never came, in order; returns and raises as `take`."""
        unfit = [each for index in sorted(self._early) for each in self._merge(self._early[index])]
        self._early.clear()
        self._close_part()
        return unfit

    def finish(self) -> Accumulator:
        """Return the total.

        Raises:
            QuorumNotReached: there is no update at all.
        """
        if not self.total.count:
            raise QuorumNotReached(f"round {self._round}: no client answered")
        return self.total

    def _merge(self, answer: Answer) -> list[Unfit]:
        """Add a group's sum and reports; returns the group where its sum does not fit what came before."""
        if answer.result is None:
            return []
        try:
            if answer.total is not None:
                self._add(answer, self._kind.from_record(_own(answer.total, self._kind)))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            said = f"what node {answer.node!r} sent is not a {self._kind.__name__}: {type(exc).__name__}: {exc}"
            return [Unfit(answer, BadUpdate(f"round {self._round}: {said}"))]
        except BadUpdate as exc:
            return [Unfit(answer, BadUpdate(f"round {self._round}, node {answer.node!r}: {exc}"))]
        self.reports += answer.result.reports
        return []

    def _add(self, answer: Answer, partial: Accumulator) -> None:
        into = self.total
        if self._span > 1:
            if answer.index // self._span != self._part_index:
                self._close_part()
                self._part_index = answer.index // self._span
            into = self._part
        count = into.count
        try:
            into.merge(partial)
        except BadUpdate:
            raise
        except Exception as exc:
            raise RunFailed(
                f"round {self._round}: {self._kind.__name__}.merge raised {type(exc).__name__}: {exc}. It must raise "
                f"BadUpdate before it changes anything; it holds {count} updates"
            ) from exc

    def _close_part(self) -> None:
        if self._part.count:
            self.total.merge(self._part)
            self._part = self._kind()


def _own(record: Record, kind: type[Accumulator]) -> Record:
    """Return arrays that outlive the agent's shared buffer, where the accumulator keeps them past the exchange.

    A running mean is read once and divided into fresh arrays, so it may borrow.
    """
    if kind is RunningMean:
        return record
    return replace(
        record, groups={g: {n: np.array(a) for n, a in arrays.items()} for g, arrays in record.groups.items()}
    )


class _Gathering:
    """One exchange while it is open."""

    def __init__(
        self,
        request: ExchangeRequest,
        opened: OpenExchange,
        closing: Closing,
        aggregation: Aggregation,
        kept: KeptAnswers,
    ) -> None:
        self.request, self.opened, self.closing = request, opened, closing
        self.aggregation, self.kept = aggregation, kept
        self.reported: set[tuple[str, str]] = set()
        """Nodes and kinds of the refusals that were reported."""
