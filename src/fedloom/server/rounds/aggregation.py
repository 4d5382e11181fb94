"""Groups' results on their way into one accumulator, in group order whatever the order they come in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedloom.core.accumulators import Accumulator, RunningMean
from fedloom.core.errors import BadUpdate, QuorumNotReached
from fedloom.core.records import ClientReport, Record
from fedloom.server.fleet.open_exchange import Answer


class Aggregation:
    """One exchange's updates, aggregated in group order.

    Args:
        kind: the accumulator's class.
        round: for messages.
        span: consecutive groups that are summed apart before they join the total: sums then have the same bits as if
            those groups had been one.
    """

    def __init__(self, kind: type[Accumulator], round: int, span: int = 1) -> None:
        self._kind, self._round, self._span = kind, round, span
        self._part, self._part_index = kind(), 0
        self._early: dict[int, Answer] = {}
        self._next = 0
        self.total: Accumulator = kind()
        """Everything aggregated so far."""
        self.reports: list[ClientReport] = []
        """In cohort order."""

    def take(self, answer: Answer) -> None:
        """Take one group's answer, and aggregate every group whose turn it is.

        Raises:
            BadUpdate: what came is not this accumulator, or does not fit what came before.
        """
        self._early[answer.index] = answer
        while self._next in self._early:
            self._merge(self._early.pop(self._next))
            self._next += 1

    def finish(self) -> Accumulator:
        """Aggregate what waited for groups that never came, in order, and return the total.

        Raises:
            BadUpdate: as `take`.
            QuorumNotReached: there is no update at all.
        """
        for index in sorted(self._early):
            self._merge(self._early[index])
        self._early.clear()
        self._close_part()
        if not self.total.count:
            raise QuorumNotReached(f"round {self._round}: no client answered")
        return self.total

    def _merge(self, answer: Answer) -> None:
        if answer.result is None:
            return
        self.reports += answer.result.reports
        if answer.total is None:
            return
        try:
            partial = self._kind.from_record(_own(answer.total, self._kind))
            if self._span == 1:
                self.total.merge(partial)
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
            self.total.merge(self._part)
            self._part = self._kind()


def _own(record: Record, kind: type[Accumulator]) -> Record:
    """Return arrays that outlive the agent's shared buffer, where the accumulator keeps them past the exchange.

    A running mean is read once and divided into fresh arrays, so it may borrow.
    """
    if kind is RunningMean:
        return record
    return replace(
        record, groups={g: {n: np.array(a) for n, a in arrays.items()} for g, arrays in record.groups.items()}
    )
