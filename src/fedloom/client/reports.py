"""Makes the reports of clients' finished jobs, and the failures of the others."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence

from fedloom.client.answer_check import check_report
from fedloom.client.jobs import Done
from fedloom.client.turn import Turn
from fedloom.core import frames
from fedloom.core.errors import DataDiffers, FedloomError
from fedloom.core.layout import info_text
from fedloom.core.messages import MAX_NAME, MAX_TEXT, Group, GroupKey
from fedloom.core.records import ClientFailure, ClientReport, Job, Record
from fedloom.core.text import clean

_log = logging.getLogger(__name__)

_TRACEBACK_LINES = 12
"""Lines of a traceback sent with a failure."""
HIDDEN = "the node does not send the details; see its log"
"""Message of a failure whose details are not sent."""
_BEFORE_READING = ("load", "data", "inputs")
"""Stages of a client's work before it has read the server's inputs."""


def report_of(turn: Turn, done: Done) -> ClientReport:
    """Report a finished job, without its seconds. Traffic is what the client alone would have read and sent.

    Raises:
        BadUpdate: a message has no room for the report.
    """
    job, update = turn.job, done.update
    up = Record(update.groups, update.info)
    read = (job.inputs if not job.cached_inputs else _not_cached(job)) if done.read else ()
    info = {} if job.kind in ("init", "describe") else update.info
    report = ClientReport(
        client=job.client,
        num_examples=update.num_examples,
        seconds=0.0,
        num_trained=int(done.trained),
        num_retrained=int(done.retrained),
        metrics=update.metrics,
        info=info,
        bytes_down=sum(turn.group.inputs[name].size for name in read),
        bytes_up=frames.frame_size(up),
        params_down=sum(turn.inputs[name].num_elements for name in read),
        params_up=up.num_elements + done.measured,
    )
    return check_report(report, len(info_text(info)) if info else 0, job.kind)


class FailureReporter:
    """Makes reports of failures on a node.

    Args:
        node: the agent's name.
        details: whether messages and tracebacks are sent, which may quote data; otherwise only the node's log has them.
    """

    def __init__(self, node: str, *, details: bool) -> None:
        self._node, self._details = node, details

    def failure(self, group: Group, job: Job, stage: str, exc: BaseException, seconds: float) -> ClientFailure:
        """Report a job that was not done, `seconds` after it was begun."""
        lines = clean("".join(traceback.format_exception(exc))).rstrip().splitlines()
        if not self._details:
            about = {"run": group.key.run_id, "round": job.round, "node": self._node}
            ours = stage == "outgoing" and isinstance(exc, FedloomError)  # what is wrong is in the message
            text = f" {lines[-1]}" if ours else "\n" + "\n".join(lines)
            _log.warning("client %d, stage %s:%s", job.client, stage, text, extra=about)
        return ClientFailure(
            client=job.client,
            round=job.round,
            stage=stage,
            error=clean(_kind(type(exc)), MAX_NAME // 2),
            message=_message(exc) if self._details else _harmless(exc),
            traceback="\n".join(lines[-_TRACEBACK_LINES:])[-MAX_TEXT:] if self._details else "",
            node=self._node,
            seconds=seconds,
            bytes_down=0 if stage in _BEFORE_READING else _read_by(group, job),
        )

    def reason(self, exc: Exception) -> str:
        """Return why a run cannot be done here, as far as it may leave the node; the log has all of it."""
        _log.info("a run that was submitted cannot be done here: %s: %s", _kind(type(exc)), exc)
        return f"{_kind(type(exc))}: {_message(exc) if self._details else _harmless(exc)}"

    def undeliverable(self, key: GroupKey, clients: Sequence[int], exc: Exception) -> list[ClientFailure]:
        """Report clients whose work is done but whose report cannot be sent."""
        return [
            ClientFailure(
                client=client,
                round=key.round,
                stage="send",
                error=clean(_kind(type(exc)), MAX_NAME // 2),
                message=_message(exc) if self._details else HIDDEN,
                node=self._node,
            )
            for client in clients
        ]

    def whole_group(self, group: Group, stage: str, exc: BaseException, seconds: float) -> list[ClientFailure]:
        """Report that none of a group's jobs was done."""
        return [self.failure(group, job, stage, exc, seconds) for job in group.jobs]


def _kind(kind: type[BaseException]) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _harmless(exc: BaseException) -> str:
    """Return what may be said of a failure whose details stay here."""
    return exc.public_message() if isinstance(exc, DataDiffers) else HIDDEN


def _message(exc: BaseException) -> str:
    """Return an exception's message as text that can be sent; never raises, whatever its class does."""
    try:
        text = str(exc)
    except Exception as raised:
        return f"(its message cannot be shown: str() raises {type(raised).__name__})"
    if not text and not isinstance(exc, Exception):
        return "the client's code ended the program"
    return clean(text, MAX_TEXT)


def _read_by(group: Group, job: Job) -> int:
    """Return the size of the frames a client reads, without those it has cached; bytes."""
    return sum(group.inputs[name].size for name in _not_cached(job))


def _not_cached(job: Job) -> list[str]:
    """Return the names of the inputs a client has to read."""
    return [name for name in job.inputs if name not in job.cached_inputs]
