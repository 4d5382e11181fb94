"""What is said of a client's job: a report where it was done, a failure where it was not."""

from __future__ import annotations

import logging
import traceback

from fedloom.client.jobs import Done
from fedloom.client.turn import Turn
from fedloom.core import frames
from fedloom.core.messages import Group
from fedloom.core.records import ClientFailure, ClientReport, Job, Mean, Record

_log = logging.getLogger(__name__)

_TRACEBACK_LINES = 12
"""Lines of a traceback that travel with a failure."""
_BEFORE_READING = ("load", "inputs")
"""Stages of a client's work in which it has not read what the server sent."""


def report_of(turn: Turn, done: Done) -> ClientReport:
    """Report a finished job, but for its seconds. Traffic is what the client alone would have read and sent."""
    job, update = turn.job, done.update
    up = Record(update.groups, update.info)
    read = (job.inputs if not job.cached_inputs else _not_cached(job)) if done.read else ()
    return ClientReport(
        client=job.client,
        num_examples=int(update.num_examples),
        seconds=0.0,
        num_trained=int(done.trained),
        num_retrained=int(done.retrained),
        metrics={name: Mean(float(mean.sum), float(mean.weight)) for name, mean in update.metrics.items()},
        info={} if job.kind == "init" else update.info,
        bytes_down=sum(turn.group.inputs[name].size for name in read),
        bytes_up=frames.frame_size(up),
        params_down=sum(turn.inputs[name].num_elements for name in read),
        params_up=up.num_elements + done.measured,
    )


class FailureReporter:
    """Makes reports of what went wrong on a node.

    Args:
        node: the agent's name.
        details: whether messages and tracebacks leave the node, which may quote data; its own log has them if not.
    """

    def __init__(self, node: str, *, details: bool) -> None:
        self._node, self._details = node, details

    def failure(self, group: Group, job: Job, stage: str, exc: Exception, seconds: float) -> ClientFailure:
        """Report a job that was not done, `seconds` after it was begun."""
        kind = type(exc)
        lines = "".join(traceback.format_exception(exc)).rstrip().splitlines()
        if not self._details:
            about = {"run": group.key.run_id, "round": job.round, "node": self._node}
            _log.warning("client %d, stage %s:\n%s", job.client, stage, "\n".join(lines), extra=about)
        return ClientFailure(
            client=job.client,
            round=job.round,
            stage=stage,
            error=kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}",
            message=str(exc) if self._details else "the node keeps the details to itself; its log has them",
            traceback="\n".join(lines[-_TRACEBACK_LINES:]) if self._details else "",
            node=self._node,
            seconds=seconds,
            bytes_down=0 if stage in _BEFORE_READING else _read_by(group, job),
        )

    def whole_group(self, group: Group, stage: str, exc: Exception, seconds: float) -> list[ClientFailure]:
        """Report that none of a group's jobs was done."""
        return [self.failure(group, job, stage, exc, seconds) for job in group.jobs]


def _read_by(group: Group, job: Job) -> int:
    """Bytes of the frames a client reads, those it has cached left out."""
    return sum(group.inputs[name].size for name in _not_cached(job))


def _not_cached(job: Job) -> list[str]:
    """Names of the inputs a client has to read."""
    return [name for name in job.inputs if name not in job.cached_inputs]
