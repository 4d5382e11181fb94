"""One pass over a group's jobs, in order: each client's update is added to the group's accumulator immediately."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedloom.client.group_program import GroupProgram
from fedloom.client.input_cache import InputsGone
from fedloom.client.jobs import COLLECT, Done, JobRunner
from fedloom.client.reports import FailureReporter, report_of
from fedloom.client.setup import NodeSetup
from fedloom.client.turn import Turn
from fedloom.core.accumulators import BUILTIN, Accumulator
from fedloom.core.errors import ClientFailed, PolicyRefused, ServerUnreachable, StorageFull, UsageError
from fedloom.core.messages import PayloadRef
from fedloom.core.records import ClientFailure, ClientReport

_WEIGHED = ("train", COLLECT)
"""Kinds of jobs whose updates are weighted as the run says; all others weigh one."""


@dataclass
class Pass:
    """The results of a pass so far."""

    stage: str = "load"
    """The current stage of the group as a whole: `load` its rules and accumulator, `aggregate`, `send` the sum."""
    accumulator: Accumulator = field(default_factory=lambda: BUILTIN["metrics"]())
    reports: list[ClientReport] = field(default_factory=list)
    failures: list[ClientFailure] = field(default_factory=list)
    states: dict[int, PayloadRef] = field(default_factory=dict)


class PoisonedSum(Exception):
    """An update made the accumulator unusable: the pass has to be repeated without that client."""

    def __init__(self, failure: ClientFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class GroupPass:
    """Makes passes over groups.

    Args:
        jobs: does each job.
        program: trains whole groups, for workloads that can.
        failures: reports what went wrong.
        setup: says which exceptions are a client's and whether they are raised as `ClientFailed` (`debug`) instead of
            reported.
    """

    def __init__(self, jobs: JobRunner, program: GroupProgram, failures: FailureReporter, setup: NodeSetup) -> None:
        self._jobs, self._program, self._failures = jobs, program, failures
        self._setup, self._debug = setup, setup.debug

    def make(self, turns: Sequence[Turn], made: Pass, excluded: Mapping[int, ClientFailure]) -> None:
        """Do the jobs of a group and add up their updates.

        Args:
            turns: the group's jobs.
            made: collects the results; its accumulator is empty.
            excluded: clients to omit, with the reason.

        Raises:
            PoisonedSum: an update that cannot be added was found only when the sum had part of it.
            ServerUnreachable, InputsGone, PolicyRefused: the group is not to be done now.
        """
        made.stage = "aggregate"
        self._program.run(turns)
        for turn in turns:
            if turn.job.client in excluded:
                made.failures.append(excluded[turn.job.client])
                continue
            begin = time.perf_counter()
            try:
                done = self._filtered(turn, self._jobs.do(turn))
                report = report_of(turn, done)
            except (ServerUnreachable, InputsGone, PolicyRefused):
                raise
            except BaseException as exc:  # a client that calls sys.exit ends itself, not its node
                if not self._setup.contains(exc):
                    raise
                made.failures.append(self._failed(turn, exc, time.perf_counter() - begin))
                continue
            self._add(turn, done, report, made, begin)

    def _filtered(self, turn: Turn, done: Done) -> Done:
        """Pass an update through the node's own filters; the initial model is no client's."""
        if turn.job.kind == "init":
            return done
        update = turn.run.filtered(done.update, turn.model)
        return done if update is done.update else replace(done, update=update)

    def _add(self, turn: Turn, done: Done, report: ClientReport, made: Pass, begin: float) -> None:
        """Add an update to the sum, and store the client's state and report."""
        client, stage = turn.job.client, "aggregate"
        try:
            if turn.job.kind.partition(".")[0] not in _WEIGHED or report.has_update:
                made.accumulator.add(done.update, _weight(turn, done), client)
            if done.update.state is not None:
                stage = "outgoing"
                ref = turn.run.clients.keep(turn.group, client, done.update.state)
                if ref is not None:
                    made.states[client] = ref
        except (StorageFull, ServerUnreachable, PolicyRefused):
            raise
        except BaseException as exc:
            if not self._setup.contains(exc):
                raise
            seconds = time.perf_counter() - begin
            raise PoisonedSum(self._failures.failure(turn.group, turn.job, stage, exc, seconds)) from exc
        made.reports.append(replace(report, seconds=time.perf_counter() - begin + done.shared_s))

    def _failed(self, turn: Turn, exc: BaseException, seconds: float) -> ClientFailure:
        if self._debug and isinstance(exc, UsageError):
            raise exc
        failure = self._failures.failure(turn.group, turn.job, turn.stage, exc, seconds)
        if self._debug:
            raise ClientFailed(failure.describe()) from exc
        return failure


def _weight(turn: Turn, done: Done) -> float:
    by_examples = turn.run.weighs_by_examples and turn.job.kind in _WEIGHED
    return (float(done.update.num_examples) if by_examples else 1.0) * turn.job.weight
