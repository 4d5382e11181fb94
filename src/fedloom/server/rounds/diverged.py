"""Reports immediately when a metric becomes NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedloom.core.events import Event, Notice
from fedloom.core.history import RoundRecord
from fedloom.server.rounds.record import not_finite


class Diverged:
    """One run's notices about metrics that are NaN or infinite: one when that begins, one when it is over.

    Args:
        run_id: the run.
        emit: takes the notices.
    """

    def __init__(self, run_id: str, emit: Callable[[Event], None]) -> None:
        self._run_id, self._emit = run_id, emit
        self._known: frozenset[str] = frozenset()

    def look(self, record: RoundRecord, exponentials: Mapping[str, str]) -> None:
        """Compare a round's metrics, of training and evaluation, with those of the round before.

        Args:
            record: the round's.
            exponentials: metrics that are the exponential of another one, which may overflow.
        """
        measured = {"training": record.metrics}
        if record.evaluation is not None:
            measured["evaluation"] = record.evaluation
        odd = frozenset(
            f"{name} ({where})" for where, values in measured.items() for name in not_finite(values, exponentials)
        )
        if fresh := sorted(odd - self._known):
            self._say(
                record.round,
                f"{', '.join(fresh)} not finite (NaN or infinite). Training may have diverged: try a smaller learning "
                "rate, on the server too, or gradient clipping",
            )
        elif self._known and not odd:
            self._say(record.round, "all metrics are finite again")
        self._known = odd

    def _say(self, round: int, message: str) -> None:
        self._emit(Notice(run_id=self._run_id, message=f"round {round}: {message}"))
