"""A run's stored results of one exchange, if it stores any."""

from __future__ import annotations

from collections.abc import Mapping

from fedloom.server.fleet.open_exchange import Answer
from fedloom.server.fleet.planned import PlannedGroup
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.store.answer_journal import AnswerJournal


class StoredAnswers:
    """The results of one exchange that survive the server; none if the run has no journal.

    Args:
        journal: the run's, if it has one.
        request: the exchange; round 0 is quickly repeated, so nothing of it is stored.
        groups: its groups. A result counts only for its own exchange: same jobs, inputs and settings.
    """

    def __init__(
        self, journal: AnswerJournal | None, request: ExchangeRequest, groups: tuple[PlannedGroup, ...]
    ) -> None:
        self._journal = journal if request.round else None
        self._round, self._index = request.round, request.index
        self._digest = self._journal.question(request.exchange, groups) if self._journal is not None else ""
        self.answers: Mapping[int, Answer] = (
            self._journal.read(self._round, self._index, self._digest) if self._journal is not None else {}
        )
        """Results stored by an earlier server, by group."""

    @property
    def enabled(self) -> bool:
        """Return whether results are stored, so that each is acknowledged only afterwards."""
        return self._journal is not None

    def store(self, answer: Answer) -> bool:
        """Store a new result; returns whether it was new and is now safe."""
        if self._journal is None or answer.result is None or answer.index in self.answers:
            return False
        self._journal.keep(self._round, self._index, self._digest, answer)
        return True

    def drop(self) -> None:
        """Delete the exchange's results: they are incompatible with each other."""
        if self._journal is not None:
            self._journal.drop(self._round, self._index)
