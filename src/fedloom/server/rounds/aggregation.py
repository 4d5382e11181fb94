"""One exchange's partial sums, aggregated in group order, whatever the order in which they come."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedloom.core.accumulators import Accumulator, RunningMean
from fedloom.core.errors import BadUpdate, QuorumNotReached, RunFailed
from fedloom.core.records import ClientReport, Record
from fedloom.server.fleet.open_exchange import Answer


class Unfit(NamedTuple):
    """A group's answer that does not fit those before it."""

    answer: Answer
    reason: BadUpdate


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

    def take(self, answer: Answer) -> list[Unfit]:
        """Add one group's answer, and aggregate every group whose turn it is; returns those that do not fit.

        Raises:
            BadUpdate: the sum was changed by one that does not fit, which only an accumulator of a plug-in does.
        """
        self._early[answer.index] = answer
        unfit: list[Unfit] = []
        while self._next in self._early:
            unfit += self._merge(self._early.pop(self._next))
            self._next += 1
        return unfit

    def take_rest(self) -> list[Unfit]:
        """Aggregate what waited for groups that never came, in order; returns and raises as `take`."""
        unfit = [each for index in sorted(self._early) for each in self._merge(self._early[index])]
        self._early.clear()
        self._close_part()
        return unfit

    def finish(self, *, allow_none: bool = False) -> Accumulator:
        """Return the total, which has no update where no client has examples.

        Args:
            allow_none: whether there may be no report at all.

        Raises:
            QuorumNotReached: there is none.
        """
        if not (allow_none or self.total.count or self.reports):
            raise QuorumNotReached(f"round {self._round}: no client answered")
        return self.total

    def _merge(self, answer: Answer) -> list[Unfit]:
        """Add a group's sum and reports; returns the group where its sum does not fit what came before."""
        if answer.result is None:
            return []
        try:
            if answer.total is not None:
                self._add(answer, self._kind.from_record(_own(answer.total, self._kind)))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            problem = f"the result of node {answer.node!r} is not a {self._kind.__name__}: {type(exc).__name__}: {exc}"
            return [Unfit(answer, BadUpdate(f"round {self._round}: {problem}"))]
        except BadUpdate as exc:
            return [Unfit(answer, BadUpdate(f"round {self._round}, node {answer.node!r}: {exc}"))]
        self.reports += answer.result.reports
        return []

    def _add(self, answer: Answer, partial: Accumulator) -> None:
        if not partial.count:  # of clients without examples alone
            return
        into = self.total
        if self._span > 1:
            if answer.index // self._span != self._part_index:
                self._close_part()
                self._part_index = answer.index // self._span
            into = self._part
        count = into.count
        try:
            into.merge(partial)
        except BadUpdate:
            raise
        except Exception as exc:
            raise RunFailed(
                f"round {self._round}: {self._kind.__name__}.merge raised {type(exc).__name__}: {exc}. It must raise "
                f"BadUpdate before it changes anything; it holds {count} updates"
            ) from exc

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
