"""One exchange as the loop sees it: jobs out in fixed groups, answers folded in order, quorum and deadline kept."""

from __future__ import annotations

import contextlib
import functools
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedloom.core.config import Experiment
from fedloom.core.errors import (
    BadUpdate,
    FedloomError,
    Interrupted,
    NoCapacity,
    RunFailed,
)
from fedloom.core.events import ClientLost, ClientsDone, Event, NodeRefused
from fedloom.core.messages import RunSpec
from fedloom.core.plugins import accumulator_class
from fedloom.core.records import MODEL, Exchange, Job, Record
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.open_exchange import Answer, OpenExchange, PlannedGroup
from fedloom.server.fleet.vetting import vet_sum
from fedloom.server.rounds.fold import Collected, Fold
from fedloom.server.rounds.pinned_inputs import Holders
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.run_store import RunStore

NoAnswer = Callable[[OpenExchange, Answer], FedloomError]
"""What to raise for a group that nobody could do."""
_TICK_S = 0.5
"""How often a waiting loop looks whether it was asked to stop; answers wake it at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spare:
    """Clients beyond those a round needs."""

    enough: int
    """Answers that close the exchange."""
    reserve: int
    """Jobs, at the end, that go out only in place of lost ones."""


class Collector:
    """Runs exchanges of one run."""

    def __init__(
        self,
        experiment: Experiment,
        run: RunSpec,
        coordinator: Coordinator,
        store: RunStore,
        emit: Callable[[Event], None],
        stop: threading.Event,
        pump: Callable[[], None] | None,
        patience_s: float | None,
        journal: AnswerJournal | None = None,
    ) -> None:
        self._experiment, self._run, self._coordinator, self._store = experiment, run, coordinator, store
        self._emit, self._stop, self._pump, self._patience_s = emit, stop, pump, patience_s
        self._journal = journal
        self._sizes: Sequence[int] = ()
        self._updates_round, self._updates_at = 0, dict[int, str]()
        self.holders = Holders()
        """Which clients have read which pinned records."""

    def collect(
        self,
        exchange: Exchange,
        round: int,
        index: int,
        *,
        quorum: float,
        deadline_s: float | None,
        group_size: int | None = None,
        telling: bool = False,
        spare: Spare | None = None,
        no_answer: NoAnswer | None = None,
    ) -> Collected:
        """Put the exchange's jobs out and fold what comes back; `telling` emits progress as clients answer.

        Where `no_answer` is given, its error is raised for the first missing answer, in place of the quorum's.

        Raises:
            ClientFailed, QuorumNotReached: too few clients answered; the message says why each is missing.
            NoCapacity: no agent is there to do the work.
            BadUpdate: answers that cannot be folded together.
            RunFailed: the exchange names inputs it has not, or knobs that are not JSON.
            Interrupted: the run was asked to stop.
        """
        _check(exchange, round)
        size = group_size or self._experiment.group_size
        # Held updates lie on different nodes: they travel one by one and are folded here as their groups would be.
        span, size = (size, 1) if exchange.collects is not None else (1, size)
        spare = spare or Spare(enough=len(exchange.jobs), reserve=0)
        groups, reserve = self._groups(exchange, round, index, size, spare.reserve)
        kind = accumulator_class(exchange.accumulator)
        vet = functools.partial(vet_sum, kind, exchange.inputs.get(MODEL))
        journal = self._journal if round else None  # an initial model is as quickly made again
        asked = journal.question(exchange, groups) if journal is not None else ""
        kept = journal.read(round, index, asked) if journal is not None else {}
        with self._coordinator.exchange(
            self._run, round, index, exchange, groups, reserve, vet, kept, journal is not None
        ) as opened:
            fold = Fold(kind, groups, [i for i in reserve if i not in kept], spare.enough, quorum, round, span)
            for old in kept.values():
                opened.answers.put(old)
            end = time.monotonic() + deadline_s if deadline_s is not None else None
            try:
                while fold.open:
                    begin = time.perf_counter()
                    answer = self._next(opened, end)
                    fold.collected.waiting_s += time.perf_counter() - begin
                    if answer is None:
                        fold.expire(deadline_s or 0.0, self._coordinator.holders(opened))
                        break
                    if no_answer is not None and (answer.result is None or answer.result.failures):
                        raise no_answer(opened, answer)
                    begin = time.perf_counter()
                    released = fold.take(answer)
                    if released:
                        self._coordinator.release(opened, released)
                    self._keep_states(answer, round, index)
                    if journal is not None and answer.result is not None and answer.index not in kept:
                        journal.keep(round, index, asked, answer)
                        self._coordinator.acknowledge(opened, answer.index)
                    self._remember_places(exchange, answer, round)
                    self._remember_readers(exchange, answer, groups[answer.index].jobs)
                    fold.collected.aggregation_s += time.perf_counter() - begin
                    if telling:
                        done, cohort = len(fold.collected.reports), spare.enough
                        self._emit(ClientsDone(run_id=self._run.run_id, round=round, done=done, cohort=cohort))
                fold.finish()
            except BadUpdate:
                if journal is not None:
                    journal.drop(round, index)
                raise
            finally:  # a round that fails tells of its missing answers, too
                for failure in fold.collected.failures if telling else ():
                    self._emit(ClientLost(run_id=self._run.run_id, failure=failure))
                self._tell_refusals(opened)
            fold.collected.duplicates, fold.collected.reassigned = opened.duplicates, opened.reassigned
            fold.collected.restored = len(kept)
            fold.collected.refusals = {node: refusal.reason for node, refusal in opened.refusals.items()}
        return fold.collected

    def _groups(
        self, exchange: Exchange, round: int, index: int, size: int, reserve: int
    ) -> tuple[list[PlannedGroup], range]:
        """The jobs in groups, those in reserve apart; and which of the groups are in reserve."""
        jobs = self.holders.mark(exchange.jobs, exchange.inputs)
        first = len(jobs) - reserve
        parts = [jobs[start : min(start + size, first)] for start in range(0, first, size)]
        held_back = [jobs[start : start + size] for start in range(first, len(jobs), size)]
        groups = [self._group(part, round, index) for part in (*parts, *held_back)]
        if exchange.collects is not None and self._updates_round == round:
            groups = [replace(group, prefer=self._updates_at.get(group.jobs[0].client, "")) for group in groups]
        return groups, range(len(parts), len(groups))

    def _remember_places(self, exchange: Exchange, answer: Answer, round: int) -> None:
        """Which node has which client's update."""
        if self._updates_round != round:
            self._updates_round, self._updates_at = round, {}
        if exchange.park and answer.result is not None:
            self._updates_at |= {report.client: answer.node for report in answer.result.reports}

    def _remember_readers(self, exchange: Exchange, answer: Answer, jobs: tuple[Job, ...]) -> None:
        """Which clients now have the exchange's pinned inputs."""
        answered = {report.client for report in answer.result.reports} if answer.result is not None else set()
        for job in jobs:
            if job.client in answered:
                self.holders.learn(job, exchange.inputs)

    def _group(self, jobs: tuple[Job, ...], round: int, index: int) -> PlannedGroup:
        states: dict[int, Record] = {}
        for job in jobs:
            state = self._store.client(job.client, (round, index))
            if state is not None:
                states[job.client] = state
        sizes = self._client_sizes()
        work = sum(sizes[job.client] if job.client < len(sizes) else 1 for job in jobs)
        return PlannedGroup(jobs=jobs, work=float(work), states=states)

    def _client_sizes(self) -> Sequence[int]:
        """Examples per client, from the first round on: what a group's work is estimated by."""
        if not self._sizes:
            info = self._store.workload()
            self._sizes = info.client_sizes if info is not None else ()
        return self._sizes

    def _next(self, opened: OpenExchange, end: float | None) -> Answer | None:
        """The next answer; None at the deadline."""
        alone_since = time.monotonic()
        while True:
            if self._stop.is_set():
                raise Interrupted(
                    f"run {self._run.run_id} was stopped; go on with it: fedloom resume {self._store.folder}"
                )
            self._tell_refusals(opened)
            with contextlib.suppress(queue.Empty):
                return _sound(opened.answers.get_nowait())
            now = time.monotonic()
            if end is not None and now >= end:
                return None
            if self._pump is not None:
                self._pump()
                continue
            if self._coordinator.hopeless:
                raise NoCapacity(self._coordinator.hopeless)
            if self._coordinator.online:
                alone_since = now
            elif self._patience_s is not None and now - alone_since > self._patience_s:
                raise NoCapacity(
                    f"no agent has been connected for {self._patience_s:.0f} s, so {len(opened.pending)} groups of "
                    "work wait. Start agents with `fedloom client --server HOST:PORT`, or look why the workers of the "
                    "runtime ended"
                )
            try:
                wait_s = _TICK_S if end is None else min(_TICK_S, max(0.001, end - now))
                return _sound(opened.answers.get(timeout=wait_s))
            except queue.Empty:
                continue

    def _tell_refusals(self, opened: OpenExchange) -> None:
        """Tell of nodes that would not or could not take part, each once for each kind of reason."""
        for node, refusal in list(opened.refusals.items()):  # the coordinator may add to them meanwhile
            if (node, refusal.kind) not in opened.told:
                opened.told.add((node, refusal.kind))
                self._emit(
                    NodeRefused(
                        run_id=self._run.run_id,
                        round=opened.round,
                        node=node,
                        kind=refusal.kind,
                        reason=refusal.reason,
                    )
                )

    def _keep_states(self, answer: Answer, round: int, index: int) -> None:
        for client, state in answer.states.items():
            self._store.save_client(client, round, index, state)


def _sound(answer: Answer | FedloomError) -> Answer:
    """The answer; what kept the groups from being handed out is raised here."""
    if isinstance(answer, FedloomError):
        raise answer
    return answer


def _check(exchange: Exchange, round: int) -> None:
    """Refuse an exchange that no agent could be sent."""
    for job in exchange.jobs:
        missing = set(job.inputs) - exchange.inputs.keys()
        if missing:
            raise RunFailed(
                f"round {round}: client {job.client} is to read inputs {sorted(missing)}, but the exchange has only "
                f"{sorted(exchange.inputs)}. Look at the strategy's plan"
            )
    for knobs in (exchange.knobs, *(job.knobs for job in exchange.jobs if job.knobs)):
        try:
            json.dumps(knobs)
        except (TypeError, ValueError, RecursionError) as exc:
            raise RunFailed(
                f"round {round}: knobs must be JSON values, got {knobs!r}: {exc}. Look at the strategy's plan"
            ) from exc
