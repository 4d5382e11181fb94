"""Answers of an exchange on their way into one accumulator, in group order; whether enough of them came."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedloom.core.accumulators import RunningMean
from fedloom.core.errors import BadUpdate, ClientFailed, QuorumNotReached, UsageError, catalogue
from fedloom.core.records import ClientFailure, ClientReport, Record
from fedloom.server.fleet.open_exchange import Answer, PlannedGroup

_USAGE = {f"{kind.__module__}.{kind.__name__}": kind for kind in catalogue() if issubclass(kind, UsageError)}
"""Errors of the input itself, by the dotted names failures carry."""


@dataclass
class Collected:
    """What an exchange brought."""

    total: Any
    """The accumulator, all answers folded."""
    reports: list[ClientReport] = field(default_factory=list)
    """In cohort order."""
    failures: list[ClientFailure] = field(default_factory=list)
    waiting_s: float = 0.0
    aggregation_s: float = 0.0
    duplicates: int = 0
    reassigned: int = 0
    restored: int = 0
    refusals: dict[str, str] = field(default_factory=dict)
    """Why nodes would not or could not take part, by node."""
    asked: list[int] = field(default_factory=list)
    """Clients whose jobs were put out, in cohort order."""
    unneeded: list[int] = field(default_factory=list)
    """Clients asked whose answers were not waited for, because enough others had come."""


class Fold:
    """Answers on their way into one accumulator, in group order, and whether enough of them came.

    Args:
        kind: of the accumulator.
        groups: all there are.
        reserve: indices of those that go out only in place of lost ones.
        enough: clients whose answers close the exchange.
        quorum: share of those that must answer.
        round: for messages.
        span: consecutive groups that are summed apart before they join the total: sums then have the same bits as if
            those groups had been one.
    """

    def __init__(
        self,
        kind: Any,
        groups: Sequence[PlannedGroup],
        reserve: Collection[int],
        enough: int,
        quorum: float,
        round: int,
        span: int,
    ) -> None:
        self._kind, self._groups, self._round, self._span = kind, groups, round, span
        self._part, self._part_index = kind(), 0
        self._enough, self._answered = enough, 0
        self._needed = max(1, int(np.ceil(quorum * enough - 1e-9)))
        self._reserve = deque(reserve)
        self._waiting = set(range(len(groups))) - set(reserve)
        self._held: dict[int, Answer] = {}
        self._next = 0
        self.collected = Collected(total=kind())

    @property
    def open(self) -> bool:
        """Whether groups are still out, and waited for."""
        return bool(self._waiting) and self._answered < self._enough

    def take(self, answer: Answer) -> list[int]:
        """Take one group's answer, and fold every group whose turn it is; returns groups to release from reserve."""
        known, jobs = len(self.collected.failures), self._groups[answer.index].jobs
        self._waiting.discard(answer.index)
        self._held[answer.index] = answer
        if answer.result is None:
            self.collected.failures += [
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
            self.collected.failures += answer.result.failures
            self._answered += len(answer.result.reports)
        released = self._release(len(self.collected.failures) - known)
        self._check_quorum()
        while self._next in self._held:
            self._fold(self._held.pop(self._next))
            self._next += 1
        return released

    def _release(self, lost: int) -> list[int]:
        """Groups of the reserve with as many clients as were lost."""
        released: list[int] = []
        while self._reserve and sum(len(self._groups[index].jobs) for index in released) < lost:
            released.append(self._reserve.popleft())
        self._waiting |= set(released)
        return released

    def expire(self, deadline_s: float, holders: Mapping[int, str]) -> None:
        """The deadline has come: what is still out is missing, and which node had it is told."""
        for index in sorted(self._waiting):
            self.collected.failures += [
                ClientFailure(
                    client=job.client,
                    round=self._round,
                    stage="deadline",
                    error="DeadlineExceeded",
                    message=f"no answer within {deadline_s:g} s"
                    + ("" if index in holders else "; no node had room for it"),
                    node=holders.get(index, ""),
                    seconds=deadline_s,
                )
                for job in self._groups[index].jobs
            ]
        self._waiting.clear()
        self._check_quorum(hoping=False)

    def finish(self) -> None:
        """Fold what waited for groups that never came, in order."""
        asked = set(range(len(self._groups))) - set(self._reserve)
        self.collected.asked = [job.client for index in sorted(asked) for job in self._groups[index].jobs]
        self.collected.unneeded = [job.client for index in sorted(self._waiting) for job in self._groups[index].jobs]
        for index in sorted(self._held):
            self._fold(self._held[index])
        self._held.clear()
        self._close_part()
        if not self.collected.total.count:
            raise QuorumNotReached(f"round {self._round}: no client answered")

    def _fold(self, answer: Answer) -> None:
        if answer.result is None:
            return
        self.collected.reports += answer.result.reports
        if answer.total is None:
            return
        try:
            partial = self._kind.from_record(_own(answer.total, self._kind))
            if self._span == 1:
                self.collected.total.merge(partial)
                return
            if answer.index // self._span != self._part_index:
                self._close_part()
                self._part_index = answer.index // self._span
            self._part.merge(partial)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise BadUpdate(
                f"round {self._round}: what node {answer.node!r} sent is not a {self._kind.__name__}: "
                f"{type(exc).__name__}: {exc}"
            ) from exc
        except BadUpdate as exc:
            raise BadUpdate(f"round {self._round}, node {answer.node!r}: {exc}") from exc

    def _close_part(self) -> None:
        if self._part.count:
            self.collected.total.merge(self._part)
            self._part = self._kind()

    def _check_quorum(self, *, hoping: bool = True) -> None:
        """Raise unless enough can still answer, with (hoping) or without those in reserve."""
        failures = self.collected.failures
        out = sum(len(group.jobs) for index, group in enumerate(self._groups) if hoping or index not in self._reserve)
        if out - len(failures) >= self._needed:
            return
        if (kind := usage_kind(failures)) is not None:  # every client met the same wrong input: that is to be shown
            raise kind(failures[0].message if failures[0].traceback else failures[0].describe())
        told = "\n".join(failure.describe() for failure in failures[:3])
        more = f"\n… and {len(failures) - 3} more" if len(failures) > 3 else ""
        if self._needed == self._enough and all(failure.traceback for failure in failures):
            raise ClientFailed(f"{told}{more}")
        raise QuorumNotReached(
            f"round {self._round} needs answers of {self._needed} of {self._enough} clients, but {len(failures)} are "
            f"missing (round.quorum_fraction and round.deadline_s decide this):\n{told}{more}"
        )


def usage_kind(failures: Sequence[ClientFailure]) -> type[UsageError] | None:
    """The class of error all of them have, where that is one of the input."""
    kinds = {failure.error for failure in failures}
    return _USAGE.get(kinds.pop()) if len(kinds) == 1 else None


def _own(record: Record, kind: type[Any]) -> Record:
    """Arrays that outlive the agent's shared buffer, where the accumulator keeps them past the exchange.

    A running mean is read once and divided into fresh arrays, so it may borrow.
    """
    if kind is RunningMean:
        return record
    return replace(
        record, groups={g: {n: np.array(a) for n, a in arrays.items()} for g, arrays in record.groups.items()}
    )
