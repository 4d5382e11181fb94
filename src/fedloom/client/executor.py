"""Turns a group of jobs into one partial accumulator: does clients' work, whatever the agent runs on."""

from __future__ import annotations

import contextlib
import time

from fedloom.client.client_stores import ClientStore, NodeStore, ServerStore, default_folder
from fedloom.client.group_pass import GroupPass, Pass, PoisonedSum
from fedloom.client.group_program import GroupProgram
from fedloom.client.helper_processes.limit import HelperLimit, RunHelpers
from fedloom.client.input_cache import InputCache, InputsGone
from fedloom.client.jobs import JobRunner
from fedloom.client.parked import ParkedUpdates
from fedloom.client.record_cache import RecordCache
from fedloom.client.reports import FailureReporter
from fedloom.client.run import Run
from fedloom.client.setup import NodeSetup
from fedloom.client.turn import Turn
from fedloom.core.errors import NotFound, PolicyRefused, ServerUnreachable
from fedloom.core.messages import Channel, Group, GroupKey, GroupResult, Inquiry, PayloadRef, RunSpec, Verdict
from fedloom.core.plugins import make_accumulator
from fedloom.core.records import ClientFailure, Record

MAX_RUNS = 8
"""Limit of runs an agent knows; the oldest is dropped for a ninth, and sent again when it has groups."""


class Executor:
    """Runs groups for one agent. Workloads stay loaded from group to group.

    Args:
        channel: source of inputs and destination of results.
        node: the agent's name, for failures.
        setup: resources and permissions of the agent's machine.
    """

    def __init__(self, channel: Channel, node: str, setup: NodeSetup | None = None) -> None:
        self._setup = setup or NodeSetup()
        self._channel, self._guard, self._debug = channel, self._setup.guard, self._setup.debug
        self._runs: dict[str, Run] = {}
        memory = self._setup.memory
        self._parked = ParkedUpdates(memory.parked_bytes)
        self._pinned = RecordCache(self._fetch, memory.pinned_bytes)
        self._inputs = InputCache(self._fetch, self._pinned, memory.inputs_bytes)
        self._states = NodeStore(self._setup.states or default_folder(node))
        self._stores: dict[str, ClientStore] = {"server": ServerStore(self._fetch, channel.store), "node": self._states}
        self._helpers = HelperLimit(self._setup.max_helpers)
        self._program = GroupProgram()
        self._failures = FailureReporter(node, details=self._guard is None or self._guard.policy.tracebacks)
        self._pass = GroupPass(JobRunner(self._parked, self._program), self._program, self._failures, self._setup)
        self._gone: GroupKey | None = None
        """The last group whose inputs were not available."""
        self._unsent: tuple[GroupKey, Pass] | None = None
        """A group that was done when the connection broke."""

    def prepare(self, spec: RunSpec) -> None:
        """Register a run; its workload is loaded with its first group (or by `warm`, when idle)."""
        if spec.run_id in self._runs:
            self._runs[spec.run_id].learn(spec)
            return
        self._runs[spec.run_id] = self._run(spec)
        if len(self._runs) > MAX_RUNS:
            oldest = next(iter(self._runs))
            self._runs.pop(oldest).close()
            self._inputs.forget(oldest)

    def _run(self, spec: RunSpec) -> Run:
        helpers = RunHelpers(self._setup.helpers, self._helpers)
        return Run(spec, self._guard, helpers, self._stores, self._setup.node_values)

    def forget(self, run_id: str, *, resumable: bool = False) -> None:
        """Drop all that is cached or parked for a run that is over, and pinned records with the last run.

        The states of its clients that are stored on the node are removed, too, unless the run may be resumed.
        """
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.close()
        self._inputs.forget(run_id)
        self._parked.forget(run_id)
        self._program.forget(run_id)
        if not resumable:
            self._states.forget(run_id)
        if self._unsent is not None and self._unsent[0].run_id == run_id:
            self._unsent = None
        if not self._runs:
            self._pinned.clear()

    def close(self) -> None:
        """End everything started for the runs."""
        for run in self._runs.values():
            run.close()

    def warm(self, run_id: str) -> None:
        """Load a run's workload ahead of its first group; what goes wrong is reported by the group."""
        with contextlib.suppress(BaseException):
            if self._guard is not None:
                self._guard.admit_now()
            self._runs[run_id].workload  # noqa: B018

    def knows(self, run_id: str) -> bool:
        """Return whether the run was announced to this agent."""
        return run_id in self._runs

    def judge(self, inquiry: Inquiry) -> Verdict:
        """Return whether this node would do a run: its policy allows it, and its experiment can be read here."""
        run = self._run(inquiry.spec)
        try:
            run.experiment  # noqa: B018
            if self._guard is not None:
                self._guard.admit_now()
        except PolicyRefused as exc:
            return Verdict(id=inquiry.id, kind=exc.kind or "workload", reason=str(exc), retry_s=exc.retry_s)
        except Exception as exc:
            return Verdict(id=inquiry.id, kind="failure", reason=self._failures.reason(exc))
        finally:
            run.close()
        return Verdict(id=inquiry.id)

    def work(self, group: Group) -> GroupResult:
        """Do every job of a group, in order. Failures of single clients are part of the result, never raised.

        Raises:
            ServerUnreachable: the connection broke under a transfer; the group can be repeated, and what was added up
                already is sent then.
            PolicyRefused: the node's policy is against it.
            InputsGone: the server no longer offers the group's inputs, for the first time: it was restarted, or the
                round is over. If the group is still needed it will be pushed again; then this is a failure.
        """
        begin = time.perf_counter()
        run = self._runs[group.key.run_id]
        made, total = self._made(run, group, begin)
        self._unsent = None
        return GroupResult(
            key=group.key,
            total=total,
            reports=tuple(made.reports),
            failures=tuple(made.failures),
            states=made.states,
            busy_s=time.perf_counter() - begin,
            notices=run.take_notices(),
        )

    def undeliverable(self, result: GroupResult, exc: Exception) -> GroupResult:
        """Return a substitute for a result that cannot be sent: a failure of each of its clients."""
        clients = [report.client for report in result.reports]
        failed = self._failures.undeliverable(result.key, clients, exc)
        return GroupResult(key=result.key, total=None, failures=(*result.failures, *failed), busy_s=result.busy_s)

    def _made(self, run: Run, group: Group, begin: float) -> tuple[Pass, PayloadRef | None]:
        """Return the valid pass, and its sum as a reference for the server."""
        unsent = self._unsent if self._unsent is not None and self._unsent[0] == group.key else None
        made = unsent[1] if unsent is not None else Pass()
        excluded: dict[int, ClientFailure] = {}
        while True:
            try:
                if self._guard is not None:
                    run.experiment  # noqa: B018  # parsed, and refused where the policy is against it
                    self._guard.admit_group(group)
                if made.stage != "send":
                    self._add_up(run, group, made, excluded)
                made.stage = "send"
                total = self._channel.store(made.accumulator.record(), group.key.run_id) if made.reports else None
                return made, total
            except PoisonedSum as poisoned:
                # The sum already contains part of a bad update. Adding up again without that client is rare and exact.
                excluded[poisoned.failure.client] = poisoned.failure
                made = Pass()
            except ServerUnreachable:
                self._unsent = (group.key, made) if made.stage == "send" else None
                raise
            except PolicyRefused:
                raise
            except InputsGone as exc:
                if self._gone != group.key:
                    self._gone = group.key
                    raise
                seconds = time.perf_counter() - begin
                return Pass(failures=self._failures.whole_group(group, "inputs", exc.error, seconds)), None
            except BaseException as exc:  # no client's fault: the sum could not be made or sent, so all are missing
                if self._debug or not self._setup.contains(exc):
                    raise
                seconds = time.perf_counter() - begin
                return Pass(failures=self._failures.whole_group(group, made.stage, exc, seconds)), None

    def _add_up(self, run: Run, group: Group, made: Pass, excluded: dict[int, ClientFailure]) -> None:
        run_id = group.key.run_id
        made.accumulator = make_accumulator(group.accumulator, lambda record: self._channel.lease(record, run_id))
        turns = [Turn(run, group, job, self._inputs.read) for job in group.jobs]
        self._pass.make(turns, made, excluded)

    def _fetch(self, ref: PayloadRef) -> Record:
        try:
            return self._channel.fetch(ref)
        except NotFound as exc:
            raise InputsGone(exc) from exc
