"""A group of jobs in, one partial accumulator out: where clients' work is done, whatever the agent runs on."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedloom.client.input_cache import InputCache
from fedloom.client.jobs import COLLECT, Done, JobRunner, Stage
from fedloom.client.memory import MemoryLimits
from fedloom.client.parked import ParkedUpdates
from fedloom.client.policy import Guard
from fedloom.client.record_cache import RecordCache
from fedloom.core import frames
from fedloom.core.accumulators import BUILTIN, Accumulator
from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, ClientFailed, NotFound, ServerUnreachable, StorageFull, UsageError
from fedloom.core.messages import Channel, Group, GroupKey, GroupResult, PayloadRef, RunSpec
from fedloom.core.plugins import AnyWorkload, build_workload, make_accumulator
from fedloom.core.records import (
    MODEL,
    ClientFailure,
    ClientReport,
    Job,
    Mean,
    Record,
    Update,
)

_log = logging.getLogger(__name__)

MAX_RUNS = 8
"""Runs an agent knows at once; the oldest is dropped for a ninth, and told again when it has groups."""
_WEIGHED = ("train", COLLECT)
"""Kinds of jobs whose updates weigh as the run says; all others weigh one."""
_TRACEBACK_LINES = 12
"""Lines of a traceback that travel with a failure."""
_BEFORE_READING = ("load", "inputs")
"""Stages of a client's work in which it has not read what the server sent."""


class Executor:
    """Does groups for one agent. Workloads stay loaded from group to group.

    Args:
        channel: where inputs come from and results are put.
        node: the agent's name, for failures.
        debug: raise `ClientFailed` from a client's exception instead of reporting it (inline runtime: a debugger then
            stands where it happened).
        guard: the node's policy; None where the server owns the node, too.
        limits: memory for parked updates and for inputs, all runs together.
    """

    def __init__(
        self,
        channel: Channel,
        node: str,
        *,
        debug: bool = False,
        guard: Guard | None = None,
        limits: MemoryLimits | None = None,
    ) -> None:
        self._channel, self._node, self._debug, self._guard = channel, node, debug, guard
        limits = limits or MemoryLimits()
        self._runs: dict[str, _Run] = {}
        self._parked = ParkedUpdates(limits.parked_bytes)
        self._jobs = JobRunner(self._fetch, self._parked)
        self._pinned = RecordCache(self._fetch, limits.pinned_bytes)
        self._inputs = InputCache(self._fetch, self._pinned, limits.inputs_bytes)
        self._gone: GroupKey | None = None
        """The last group whose inputs were not to be had."""
        self._unsent: tuple[GroupKey, _Attempt] | None = None
        """A group that was done when the connection broke."""

    def prepare(self, spec: RunSpec) -> None:
        """Know a run; its workload is loaded with its first group (or now, in a spare moment, by `warm`)."""
        if spec.run_id not in self._runs:
            self._runs[spec.run_id] = _Run(spec, self._guard)
            if len(self._runs) > MAX_RUNS:
                oldest = next(iter(self._runs))
                del self._runs[oldest]
                self._inputs.forget(oldest)

    def forget(self, run_id: str) -> None:
        """Drop all that is cached or parked for a run that is over, and pinned records with the last one."""
        self._runs.pop(run_id, None)
        self._inputs.forget(run_id)
        self._parked.forget(run_id)
        if self._unsent is not None and self._unsent[0].run_id == run_id:
            self._unsent = None
        if not self._runs:
            self._pinned.clear()

    def warm(self, run_id: str) -> None:
        """Load a run's workload ahead of its first group; what goes wrong is reported by the group."""
        with contextlib.suppress(Exception):
            if self._guard is not None:
                self._guard.admit_now()
            self._runs[run_id].workload  # noqa: B018

    def knows(self, run_id: str) -> bool:
        """Whether the run was announced to this agent."""
        return run_id in self._runs

    def work(self, group: Group) -> GroupResult:
        """Do every job of a group, in order. Failures of single clients are part of the result, never raised.

        Raises:
            ServerUnreachable: the connection broke under a transfer; the group can be done again, and what was folded
                already is sent then.
            PolicyRefused: the node's policy is against it.
            InputsGone: the server has nothing of what the group reads, for the first time: it was restarted, or the
                round is over. Where the group is still wanted it will be pushed again; then this is a failure.
        """
        begin = time.perf_counter()
        run = self._runs[group.key.run_id]
        if self._guard is not None:
            run.experiment  # noqa: B018  # parsed, and refused where the policy is against it
            self._guard.admit_group(group)
        unsent = self._unsent if self._unsent is not None and self._unsent[0] == group.key else None
        attempt = unsent[1] if unsent is not None else _Attempt()
        barred: dict[int, ClientFailure] = {}
        total: PayloadRef | None = None
        while True:
            try:
                if attempt.stage != "send":
                    self._fold(run, group, attempt, barred)
                attempt.stage = "send"
                total = self._store(group, attempt.accumulator.record()) if attempt.reports else None
                break
            except _Spoilt as spoilt:
                # The sum already holds part of a bad update. Folding again without that client is rare and exact.
                barred[spoilt.failure.client] = spoilt.failure
                attempt = _Attempt()
            except ServerUnreachable:
                self._unsent = (group.key, attempt) if attempt.stage == "send" else None
                raise
            except InputsGone as exc:
                if self._gone != group.key:
                    self._gone = group.key
                    raise
                seconds = time.perf_counter() - begin
                failures = [self._failure(group, job, "inputs", exc.error, seconds) for job in group.jobs]
                attempt = _Attempt(failures=failures)
                break
            except Exception as exc:  # no client's fault: the sum could not be made or sent, so all are missing
                if self._debug:
                    raise
                stage, seconds = attempt.stage, time.perf_counter() - begin
                attempt = _Attempt(failures=[self._failure(group, job, stage, exc, seconds) for job in group.jobs])
                break
        self._unsent = None
        return GroupResult(
            key=group.key,
            total=total,
            reports=tuple(attempt.reports),
            failures=tuple(attempt.failures),
            states=attempt.states,
            busy_s=time.perf_counter() - begin,
        )

    def _fold(self, run: _Run, group: Group, attempt: _Attempt, barred: Mapping[int, ClientFailure]) -> None:
        run_id = group.key.run_id
        attempt.accumulator = make_accumulator(group.accumulator, lambda record: self._channel.lease(record, run_id))
        attempt.stage = "fold"
        with contextlib.suppress(Exception):  # what cannot be loaded is told by the clients' own jobs
            together = [replace(job, knobs={**group.knobs, **job.knobs}) for job in group.jobs]
            whole = replace(group, jobs=tuple(together))
            self._jobs.train_together(run.experiment, run.workload, whole, lambda: self._inputs.read(group))
        for job in group.jobs:
            if job.client in barred:
                attempt.failures.append(barred[job.client])
                continue
            if group.knobs:
                job = replace(job, knobs={**group.knobs, **job.knobs})
            begin = time.perf_counter()
            stage = Stage()
            try:
                done = self._jobs.do(run.experiment, run.workload, group, job, lambda: self._inputs.read(group), stage)
                update, report = done.update, self._report(job, group, done)
            except (ServerUnreachable, InputsGone):
                raise
            except Exception as exc:
                if self._debug and isinstance(exc, UsageError):
                    raise
                if self._debug:
                    failure = self._failure(group, job, stage.name, exc, time.perf_counter() - begin)
                    raise ClientFailed(failure.describe()) from exc
                attempt.failures.append(self._failure(group, job, stage.name, exc, time.perf_counter() - begin))
                continue
            weight = float(update.num_examples) if run.by_examples and job.kind in _WEIGHED else 1.0
            weight *= job.weight
            try:
                if group.accumulator == "mean":
                    self._check_shapes(update, group, job.client)
                attempt.accumulator.add(update, weight, job.client)
            except StorageFull:
                raise
            except Exception as exc:
                raise _Spoilt(self._failure(group, job, "fold", exc, time.perf_counter() - begin)) from exc
            if update.state is not None:
                attempt.states[job.client] = self._store(group, update.state)
            attempt.reports.append(replace(report, seconds=time.perf_counter() - begin + done.shared_s))

    def _check_shapes(self, update: Update, group: Group, client: int) -> None:
        """Name the client whose arrays differ from the global model's, not those that come after it."""
        model = self._inputs.read(group).get(MODEL)
        for name, array in update.groups.get(MODEL, {}).items():
            want = model.groups.get(MODEL, {}).get(name) if model is not None else None
            if want is not None and array.shape != want.shape:
                raise BadUpdate(
                    f"client {client}: array {name!r} of group {MODEL!r} has shape {array.shape}, the global model has "
                    f"{want.shape}. A mean needs equal shapes; does another strategy's rule run there?"
                )

    def _fetch(self, ref: PayloadRef) -> Record:
        try:
            return self._channel.fetch(ref)
        except NotFound as exc:
            raise InputsGone(exc) from exc

    def _store(self, group: Group, record: Record) -> PayloadRef:
        return self._channel.store(record, group.key.run_id)

    def _report(self, job: Job, group: Group, done: Done) -> ClientReport:
        update = done.update
        up = Record(update.groups, update.info)
        names = [name for name in job.inputs if name not in job.cached_inputs] if done.read else []
        return ClientReport(
            client=job.client,
            num_examples=int(update.num_examples),
            seconds=0.0,
            num_trained=int(done.trained),
            num_retrained=int(done.retrained),
            metrics={name: Mean(float(mean.sum), float(mean.weight)) for name, mean in update.metrics.items()},
            info={} if job.kind == "init" else update.info,
            bytes_down=_read_by(group, job) if done.read else 0,
            bytes_up=frames.frame_size(up),
            params_down=sum(self._inputs.read(group)[name].num_elements for name in names),
            params_up=up.num_elements + done.measured,
        )

    def _failure(self, group: Group, job: Job, stage: str, exc: Exception, seconds: float) -> ClientFailure:
        kind, told = type(exc), self._guard is None or self._guard.policy.tracebacks
        dotted = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        lines = "".join(traceback.format_exception(exc)).rstrip().splitlines()
        if not told:
            about = {"run": group.key.run_id, "round": job.round, "node": self._node}
            _log.warning("client %d, stage %s:\n%s", job.client, stage, "\n".join(lines), extra=about)
        return ClientFailure(
            client=job.client,
            round=job.round,
            stage=stage,
            error=dotted,
            message=str(exc) if told else "the node keeps the details to itself; its log has them",
            traceback="\n".join(lines[-_TRACEBACK_LINES:]) if told else "",
            node=self._node,
            seconds=seconds,
            bytes_down=0 if stage in _BEFORE_READING else _read_by(group, job),
        )


def _read_by(group: Group, job: Job) -> int:
    """Bytes of the frames a client reads, those it holds already left out."""
    return sum(group.inputs[name].size for name in job.inputs if name not in job.cached_inputs)


class InputsGone(Exception):
    """What a group reads is not on offer at the server."""

    def __init__(self, error: NotFound) -> None:
        super().__init__(str(error))
        self.error = error


class _Run:
    """One experiment on this agent, its workload loaded when first needed."""

    def __init__(self, spec: RunSpec, guard: Guard | None) -> None:
        self._spec, self._guard = spec, guard

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The experiment, read with what is installed here; an unknown name fails the clients, not the agent."""
        values = self._spec.experiment
        return Experiment.parse(self._guard.admit_experiment(values) if self._guard is not None else values)

    @property
    def by_examples(self) -> bool:
        """Whether an update weighs as much as its examples; the only one of its round weighs one, which is exact."""
        return self.experiment.round.weighting == "examples" and self.experiment.cohort_size > 1

    @functools.cached_property
    def workload(self) -> AnyWorkload:
        return build_workload(self.experiment.workload, self.experiment)


@dataclass
class _Attempt:
    """One pass over a group's jobs."""

    stage: str = "load"
    """What is being done for the group as a whole: `load` its rule and accumulator, `fold`, `send` the sum."""
    accumulator: Accumulator = field(default_factory=lambda: BUILTIN["metrics"]())
    reports: list[ClientReport] = field(default_factory=list)
    failures: list[ClientFailure] = field(default_factory=list)
    states: dict[int, PayloadRef] = field(default_factory=dict)


class _Spoilt(Exception):
    """An update spoilt the accumulator it was added to."""

    def __init__(self, failure: ClientFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure
