"""What a run has on disk of one exchange's answers, where it keeps any."""

from __future__ import annotations

from collections.abc import Mapping

from fedloom.server.fleet.open_exchange import Answer
from fedloom.server.fleet.planned import PlannedGroup
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.store.answer_journal import AnswerJournal


class KeptAnswers:
    """The answers of one exchange that survive the server; none where the run has no journal.

    Args:
        journal: the run's, if it has one.
        request: the exchange; round 0 is as quickly made again, so nothing of it is kept.
        groups: its groups. An answer counts only for the exchange it was given to: same jobs, inputs and settings.
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
        """Those of an earlier server, by group."""

    @property
    def enabled(self) -> bool:
        """Whether answers are kept, so that each is acknowledged only once it is."""
        return self._journal is not None

    def keep(self, answer: Answer) -> bool:
        """Write a new answer down; returns whether it was new and is safe now."""
        if self._journal is None or answer.result is None or answer.index in self.answers:
            return False
        self._journal.keep(self._round, self._index, self._digest, answer)
        return True

    def drop(self) -> None:
        """Forget the exchange's answers: they are of no use together."""
        if self._journal is not None:
            self._journal.drop(self._round, self._index)
