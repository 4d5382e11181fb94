"""Cuts an exchange's jobs into groups: clients that are aggregated together, with their states and caches."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from fedloom.core.errors import RunFailed
from fedloom.core.records import Exchange, Job, Record
from fedloom.server.fleet.open_exchange import Answer
from fedloom.server.fleet.planned import PlannedGroup, RunFacts
from fedloom.server.rounds.pinned_inputs import PinLedger
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.store.run_store import RunStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouping:
    """An exchange's groups."""

    groups: tuple[PlannedGroup, ...]
    reserve: range
    """Indices of the groups that run only in place of failed ones."""
    span: int
    """Consecutive groups that are summed separately before they join the total."""


class GroupPlanner:
    """Cuts the exchanges of one run into groups, and tracks where earlier exchanges left updates and inputs.

    Args:
        run: the run's facts.
        store: clients' states, and the sizes the workload declares.
    """

    def __init__(self, run: RunFacts, store: RunStore) -> None:
        self._run, self._store = run, store
        self._sizes: Sequence[int] | None = None
        self._parked_round, self._parked_at = 0, dict[int, str]()
        """The nodes that have clients' parked updates of one round."""
        self.pinned = PinLedger()
        """Which clients have read which pinned records."""

    def cut(self, request: ExchangeRequest) -> Grouping:
        """Return an exchange's groups, a function of its jobs and the group size alone.

        Raises:
            RunFailed: it names inputs it has not, or knobs that are not JSON.
        """
        _check(request.exchange, request.round)
        exchange, size = request.exchange, request.group_size or self._run.group_size
        # Parked updates are on different nodes: they are sent one by one and aggregated as their groups would be.
        span, size = (size, 1) if exchange.collects is not None else (1, size)
        jobs = self.pinned.mark(exchange.jobs, exchange.inputs)
        first = len(jobs) - request.terms.reserve
        parts = _pieces(jobs[:first], size)
        held_back = _pieces(jobs[first:], size)
        groups = tuple(self._group(part, request) for part in (*parts, *held_back))
        return Grouping(groups=groups, reserve=range(len(parts), len(groups)), span=span)

    def learn(self, request: ExchangeRequest, answer: Answer, jobs: tuple[Job, ...]) -> None:
        """Record from a group's result who has read the inputs, and whose update is parked where."""
        if self._parked_round != request.round:
            self._parked_round, self._parked_at = request.round, {}
        reported = {report.client for report in answer.result.reports} if answer.result is not None else set()
        if request.exchange.park:
            self._parked_at |= dict.fromkeys(reported, answer.node)
        for job in jobs:
            if job.client in reported:
                self.pinned.learn(job, request.exchange.inputs)

    def _group(self, jobs: tuple[Job, ...], request: ExchangeRequest) -> PlannedGroup:
        sizes = self._client_sizes()
        work = sum(sizes[job.client] if job.client < len(sizes) else 1 for job in jobs)
        collects = request.exchange.collects is not None and self._parked_round == request.round
        return PlannedGroup(
            jobs=jobs,
            work=float(work),
            states=self._states(jobs, request) if self._run.keeps_states else {},
            prefer=self._parked_at.get(jobs[0].client, "") if collects else "",
            only=jobs[0].node,
            member=jobs[0].member,
            keeps_states=self._run.takes_states(request.exchange),
        )

    def _states(self, jobs: tuple[Job, ...], request: ExchangeRequest) -> dict[int, Record]:
        states = {job.client: self._store.client(job.client, (request.round, request.index)) for job in jobs}
        return {client: state for client, state in states.items() if state is not None}

    def _client_sizes(self) -> Sequence[int]:
        """Return examples per client, by which a group's work is estimated; known once round 0 is over."""
        if self._sizes is None:
            info = self._store.workload()
            if info is None:
                return ()
            self._sizes = info.client_sizes
        return self._sizes


def _pieces(jobs: tuple[Job, ...], size: int) -> list[tuple[Job, ...]]:
    """Cut jobs into groups of `size`, in order; a group's jobs are all for one node, or for any."""
    runs = (tuple(run) for _, run in itertools.groupby(jobs, key=lambda job: job.node))
    return [run[start : start + size] for run in runs for start in range(0, len(run), size)]


def _check(exchange: Exchange, round: int) -> None:
    """Refuse an exchange that no agent could be sent."""
    for job in exchange.jobs:
        missing = set(job.inputs) - exchange.inputs.keys()
        if missing:
            raise RunFailed(
                f"round {round}: client {job.client} has to read inputs {sorted(missing)}, but the exchange has only "
                f"{sorted(exchange.inputs)}. Check the strategy's `plan`"
            )
    for knobs in (exchange.knobs, *(job.knobs for job in exchange.jobs if job.knobs)):
        try:
            json.dumps(knobs)
        except (TypeError, ValueError, RecursionError) as exc:
            raise RunFailed(
                f"round {round}: knobs must be JSON values, got {knobs!r}: {exc}. Check the strategy's `plan`"
            ) from exc
