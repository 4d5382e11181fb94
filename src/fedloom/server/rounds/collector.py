"""One exchange from the server's side: jobs out in fixed groups, results aggregated in order until it closes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import replace

from fedloom.core.errors import BadUpdate
from fedloom.core.events import ClientLost, ClientsDone, NodeRefused, Notice
from fedloom.core.messages import MAX_NOTICES
from fedloom.core.plugins import accumulator_class
from fedloom.core.records import MODEL, Exchange
from fedloom.server.fleet.open_exchange import Answer, OpenExchange
from fedloom.server.fleet.planned import PlannedExchange, RunFacts
from fedloom.server.fleet.vetting import SumTerms, vet_sum
from fedloom.server.rounds.aggregation import Aggregation
from fedloom.server.rounds.client_updates import changes
from fedloom.server.rounds.closing import Closing
from fedloom.server.rounds.counts import Collected, RoundCounts
from fedloom.server.rounds.equal_counts import counted_alike
from fedloom.server.rounds.grouping import GroupPlanner
from fedloom.server.rounds.long_waits import LongWaits
from fedloom.server.rounds.model_dtypes import ModelDtypes
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.rounds.run_services import FleetAccess, RunOutputs
from fedloom.server.rounds.stored_answers import StoredAnswers
from fedloom.server.rounds.wait_notices import WaitNotices
from fedloom.server.rounds.waiting import Waiting


class Collector:
    """Runs the exchanges of one run.

    Args:
        run: the run's facts.
        fleet: the way to the agents.
        outputs: destinations of states, results and events.
        stop: when set, an exchange in progress ends with `Interrupted`.
    """

    def __init__(self, run: RunFacts, fleet: FleetAccess, outputs: RunOutputs, stop: threading.Event) -> None:
        self._run, self._fleet, self._outputs = run, fleet, outputs
        self.groups = GroupPlanner(run, outputs.store)
        """Knows which clients have which inputs and updates of earlier exchanges."""
        self.pin: Callable[[Exchange], Exchange] = lambda exchange: exchange
        """Binds clients' jobs to the nodes that may do them."""
        self.counts_alike: Callable[[], bool] = lambda: False
        """Returns whether clients count the same, because some withhold their number of examples."""
        self.keeps_updates = False
        """Whether each client's update is stored."""
        self._dtypes = ModelDtypes()
        self._noticed: set[str] = set()
        resume = f"run {run.run_id} was stopped; resume it: fedloom resume {outputs.store.folder}"
        workload = run.spec.experiment.get("workload", {})
        work = f"the work is that of workload {workload.get('name', '')!r}"
        notices = WaitNotices(run.run_id, work, outputs.emit, fleet.clock)
        self._waiting = Waiting(fleet, stop, resume, notices, LongWaits(run.run_id, outputs.emit, fleet.clock))

    def describe(self, run: RunFacts) -> None:
        """Set the run's facts for later exchanges."""
        self._run = run

    def wait(self, lacking: Callable[[], str], limit_s: float | None) -> None:
        """Return once nothing is lacking, according to a function, or after a number of seconds."""
        self._waiting.until_none(lacking, limit_s)

    def collect(self, request: ExchangeRequest) -> Collected:
        """Run an exchange's jobs and aggregate the results.

        Raises:
            ClientFailed, QuorumNotReached: too few updates arrived; the message says why each is missing.
            NoCapacity: no agent is there to do the work.
            BadUpdate: updates that cannot be aggregated together.
            RunFailed: the model has another dtype than before, or the exchange names inputs it has not, or knobs that
                are not JSON.
            Interrupted: the run was stopped.
        """
        request = self._pinned(request)
        self._dtypes.check(request.round, request.exchange)
        if self._run.min_nodes > 1:
            self._waiting.for_nodes(self._run.min_nodes, self._run.labels)
        grouping, exchange = self.groups.cut(request), request.exchange
        kind = accumulator_class(exchange.accumulator)
        stored = StoredAnswers(self._outputs.journal, request, grouping.groups)
        planned = PlannedExchange(
            run=self._run,
            round=request.round,
            index=request.index,
            exchange=exchange,
            groups=grouping.groups,
            reserve=grouping.reserve,
            answered=stored.answers.keys(),
            vet=functools.partial(vet_sum, kind, exchange.inputs.get(MODEL)),
            terms=SumTerms.of(kind, exchange, by_examples=self._run.by_examples, parts=len(exchange.jobs)),
            run_acknowledges=stored.enabled,
        )
        with self._fleet.coordinator.exchange(planned) as opened:
            closing = Closing(planned, request.terms, self._fleet.clock)
            gathering = _Gathering(request, opened, closing, Aggregation(kind, request.round, grouping.span), stored)
            try:
                collected = self._gather(gathering)
                return counted_alike(collected) if self.counts_alike() else collected
            except BadUpdate:
                stored.drop()
                raise
            finally:  # a round that fails reports its missing updates, too
                self._waiting.closed()
                for failure in closing.failures if request.emit_progress else ():
                    self._outputs.emit(ClientLost(run_id=self._run.run_id, failure=failure))
                self._report_refusals(gathering)

    def _pinned(self, request: ExchangeRequest) -> ExchangeRequest:
        """Return a request whose jobs are bound to nodes; of other work than clients' any answer is enough then."""
        exchange = self.pin(request.exchange)
        if len(exchange.jobs) == len(request.exchange.jobs) and any(job.of_client for job in exchange.jobs):
            return replace(request, exchange=exchange)
        count = len(exchange.jobs)
        if exchange is request.exchange or not count:
            return request
        return replace(request, exchange=exchange, terms=replace(request.terms, quota=count, quorum_fraction=1 / count))

    def _gather(self, gathering: _Gathering) -> Collected:
        """Receive results until the exchange closes."""
        clock, opened, closing = self._fleet.clock, gathering.opened, gathering.closing
        for answer in gathering.stored.answers.values():
            opened.answers.put(answer)
        counts = RoundCounts(restored=len(gathering.stored.answers))
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
        total = gathering.aggregation.finish(allow_none=not gathering.request.terms.quorum_fraction)
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
        """Count one result, aggregate it, and store what outlives the exchange."""
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
        if self.keeps_updates:
            self._keep_update(request, answer)
        if gathering.stored.store(answer):
            self._fleet.coordinator.acknowledge(opened, answer.index)
        self.groups.learn(request, answer, opened.groups[answer.index].jobs)
        self._report_notices(answer)
        if request.emit_progress:
            done, wanted = len(gathering.aggregation.reports), request.terms.quota
            self._outputs.emit(ClientsDone(run_id=self._run.run_id, round=request.round, done=done, cohort=wanted))

    def _keep_update(self, request: ExchangeRequest, answer: Answer) -> None:
        """Store what a client has changed in the model it was sent, if its update is such a model."""
        if answer.result is None or len(answer.result.reports) != 1 or request.exchange.accumulator != "mean":
            return
        sent, total = request.exchange.inputs.get(MODEL), answer.total
        if sent is not None and total is not None:
            [report] = answer.result.reports
            update = changes(total, sent, report.num_examples)
            if update is not None:
                self._outputs.store.save_update(request.round, report.client, update)

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


class _Gathering:
    """One exchange while it is open."""

    def __init__(
        self,
        request: ExchangeRequest,
        opened: OpenExchange,
        closing: Closing,
        aggregation: Aggregation,
        stored: StoredAnswers,
    ) -> None:
        self.request, self.opened, self.closing = request, opened, closing
        self.aggregation, self.stored = aggregation, stored
        self.reported: set[tuple[str, str]] = set()
        """Nodes and kinds of the refusals that were reported."""
