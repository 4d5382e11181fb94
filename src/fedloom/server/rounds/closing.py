"""Decides when an exchange ends, for any reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.clock import Clock
from fedloom.core.errors import BadUpdate, ClientFailed, FedloomError, QuorumNotReached, UsageError, catalogue
from fedloom.core.records import ClientFailure
from fedloom.server.fleet.open_exchange import Answer
from fedloom.server.fleet.planned import PlannedExchange

_USAGE = {f"{kind.__module__}.{kind.__name__}": kind for kind in catalogue() if issubclass(kind, UsageError)}
"""Errors of the input itself, by the dotted names in failures."""
_NO_CAPACITY = "no node had capacity for it"
_SHOWN = 3
"""Failures that an error lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosingTerms:
    """The conditions under which an exchange ends."""

    quota: int
    """Number of updates that end the exchange."""
    quorum_fraction: float = 1.0
    """Fraction of the quota that must arrive, 0 <= fraction <= 1; with 0 the strategy decides what to do with none."""
    deadline_s: float | None = None
    """Seconds after which the exchange ends with the updates that have arrived; None: no limit."""
    asks_another: bool = False
    """Whether each deadline that passes assigns the group to another node, too, instead of ending the exchange."""
    reserve: int = 0
    """Jobs, at the end of the exchange's, that run only in place of failed ones."""


class Closing:
    """Decides when an exchange ends: with its quota, at its deadline, or with an error once its quorum is out of reach.

    Args:
        planned: the exchange; the results it already has are treated like any others.
        terms: its conditions.
        clock: for the deadline, which starts now.
    """

    def __init__(self, planned: PlannedExchange, terms: ClosingTerms, clock: Clock) -> None:
        self._groups, self._round, self._terms, self._clock = planned.groups, planned.round, terms, clock
        least = 1 if terms.quorum_fraction else 0
        self._needed = max(least, int(np.ceil(terms.quorum_fraction * terms.quota - 1e-9)))
        self._reserve = deque(index for index in planned.reserve if index not in planned.answered)
        self._outstanding = set(range(len(planned.groups))) - set(self._reserve)
        self._came = 0
        self._jobs = sum(len(group.jobs) for group in planned.groups)
        self._end = clock.monotonic() + terms.deadline_s if terms.deadline_s is not None else None
        self.failures: list[ClientFailure] = []
        """Why updates are missing, so far."""

    @property
    def open(self) -> bool:
        """Return whether groups are outstanding and their updates needed."""
        return bool(self._outstanding) and self._came < self._terms.quota

    def remaining_s(self) -> float | None:
        """Return the seconds until the deadline, <= 0 once it has passed; None without one."""
        return None if self._end is None else self._end - self._clock.monotonic()

    def postpone(self, seconds: float) -> None:
        """Move the deadline to a later time, if there is one."""
        if self._end is not None:
            self._end += seconds

    def extend(self) -> tuple[int, ...]:
        """Restart the deadline; returns the groups that have not been answered."""
        if self._terms.deadline_s is not None:
            self._end = self._clock.monotonic() + self._terms.deadline_s
        return tuple(sorted(self._outstanding))

    def take(self, answer: Answer) -> list[int]:
        """Count one group's result; returns the groups to release from the reserve.

        Raises:
            ClientFailed, QuorumNotReached: too few clients are left; the message says why each update is missing.
        """
        known, jobs = len(self.failures), self._groups[answer.index].jobs
        self._outstanding.discard(answer.index)
        if answer.result is None:
            self.failures += [
                ClientFailure(
                    client=job.client,
                    round=self._round,
                    stage=answer.stage,
                    error=answer.error,
                    message=answer.lost,
                    node=answer.node,
                )
                for job in jobs
            ]
        else:
            self.failures += answer.result.failures
            self._came += len(answer.result.reports)
        released = self._release(len(self.failures) - known)
        self._check_quorum(with_reserve=True)
        return released

    def discard(self, answer: Answer, reason: BadUpdate) -> list[int]:
        """Count the clients of an accepted result as failed because their sum is incompatible; returns as `take`.

        Raises:
            BadUpdate: the reason itself, if too few clients are left without them.
        """
        if answer.result is None:
            return []
        self._came -= len(answer.result.reports)
        self.failures += [
            ClientFailure(
                client=report.client,
                round=self._round,
                stage="aggregate",
                error=f"{BadUpdate.__module__}.{BadUpdate.__name__}",
                message=str(reason),
                node=answer.node,
                seconds=report.seconds,
                bytes_down=report.bytes_down,
            )
            for report in answer.result.reports
        ]
        released = self._release(len(answer.result.reports))
        try:
            self._check_quorum(with_reserve=True)
        except FedloomError:
            raise reason from None
        return released

    def expire(self, assigned: Mapping[int, str]) -> None:
        """End the exchange at its deadline: outstanding updates are missing.

        Args:
            assigned: the node that has each group now.

        Raises:
            ClientFailed, QuorumNotReached: as `take`.
        """
        limit_s = self._terms.deadline_s or 0.0
        for index in sorted(self._outstanding):
            group = self._groups[index]
            lacking = f"node {group.only!r}, the only one for it, had no capacity" if group.only else _NO_CAPACITY
            self.failures += [
                ClientFailure(
                    client=job.client,
                    round=self._round,
                    stage="deadline",
                    error="DeadlineExceeded",
                    message=f"no result within {limit_s:g} s" + ("" if index in assigned else f"; {lacking}"),
                    node=assigned.get(index, group.only),
                    seconds=limit_s,
                )
                for job in group.jobs
            ]
        self._outstanding.clear()
        self._check_quorum(with_reserve=False)

    def sampled(self) -> tuple[int, ...]:
        """Return the clients whose jobs were sent, in cohort order."""
        return self._clients(index for index in range(len(self._groups)) if index not in self._reserve)

    def superseded(self) -> tuple[int, ...]:
        """Return the clients whose updates are no longer needed, because enough others arrived."""
        return self._clients(sorted(self._outstanding))

    def _clients(self, indices: Iterable[int]) -> tuple[int, ...]:
        return tuple(job.client for index in indices for job in self._groups[index].jobs)

    def _release(self, failed: int) -> list[int]:
        """Release groups of the reserve with as many clients as failed."""
        released: list[int] = []
        while self._reserve and sum(len(self._groups[index].jobs) for index in released) < failed:
            released.append(self._reserve.popleft())
        self._outstanding |= set(released)
        return released

    def _check_quorum(self, *, with_reserve: bool) -> None:
        """Raise unless enough updates have arrived or can still arrive, with or without those of the reserve."""
        held_back = 0 if with_reserve else sum(len(self._groups[index].jobs) for index in self._reserve)
        left = self._jobs - held_back - len(self.failures)
        if left < self._needed or (not left and usage_kind(self.failures) is not None):
            raise self._too_few()

    def _too_few(self) -> FedloomError:
        failures = self.failures
        if (kind := usage_kind(failures)) is not None:  # every client met the same wrong input: that is to be shown
            return kind(failures[0].message if failures[0].traceback else failures[0].describe())
        reasons = "\n".join(failure.describe() for failure in failures[:_SHOWN])
        more = f"\n… and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        if self._needed == self._terms.quota and all(failure.traceback for failure in failures):
            return ClientFailed(f"{reasons}{more}")
        return QuorumNotReached(
            f"round {self._round} needs updates of {self._needed} of {self._terms.quota} clients, but {len(failures)} "
            f"are missing (see round.quorum_fraction and round.deadline_s):\n{reasons}{more}"
        )


def usage_kind(failures: Sequence[ClientFailure]) -> type[UsageError] | None:
    """Return the class of error all failures have, if that is one of the input."""
    kinds = {failure.error for failure in failures}
    return _USAGE.get(kinds.pop()) if len(kinds) == 1 else None
