"""The best evaluated round of a run: its model is the final one, and a run without a better one may end early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedloom.core.config.sections import BestSettings
from fedloom.core.errors import ConfigError
from fedloom.core.events import Notice
from fedloom.core.history import BestRound, RoundRecord
from fedloom.core.pinned import Pinned
from fedloom.core.records import Arrays
from fedloom.core.state import dump_state, load_state, pinned_in
from fedloom.core.text import did_you_mean
from fedloom.server.rounds.open_round import OpenRound, RoundPhase, RunParts
from fedloom.server.store.run_store import Checkpoint


class Best:
    """Which round was the best so far, and for how many evaluations none was better.

    Args:
        settings: metric, direction, patience.
    """

    def __init__(self, settings: BestSettings) -> None:
        self._settings = settings
        self.round = 0
        """0 before there is one."""
        self.value = math.nan
        self.without_gain = 0
        """Evaluations since then."""
        self.evaluation: Mapping[str, float] = {}
        self._seen = False

    @property
    def exhausted(self) -> bool:
        """Return whether the run should end: no gain for as many evaluations as the patience is."""
        patience = self._settings.patience
        return patience is not None and self.without_gain >= patience

    def look(self, round: int, evaluation: Mapping[str, float] | None) -> bool:
        """Compare a round's evaluation with the best one; returns whether it is the new best.

        Args:
            round: its number.
            evaluation: means by name; None if the round was not evaluated, which counts for nothing. A value that is
                NaN or infinite is no gain.

        Raises:
            ConfigError: the first evaluation has no such metric; the message names those it has.
        """
        if evaluation is None:
            return False
        name = self._settings.metric
        if name not in evaluation and not self._seen:
            raise ConfigError(
                f"best.metric: found no {name!r} in the evaluation of round {round}; {did_you_mean(name, evaluation)}"
                f"expected one of {', '.join(evaluation)}"
            )
        self._seen, value = True, evaluation.get(name, math.nan)
        if not self._is_gain(value):
            self.without_gain += 1
            return False
        self.round, self.value, self.without_gain, self.evaluation = round, value, 0, dict(evaluation)
        return True

    def _is_gain(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        gain = value - self.value if self._settings.larger_is_better else self.value - value
        return not self.round or gain > self._settings.min_gain

    @classmethod
    def replayed(cls, settings: BestSettings, records: Sequence[RoundRecord]) -> Best:
        """Return what a run knew after the rounds of these records."""
        best = cls(settings)
        for record in records:
            best.look(record.round, record.evaluation)
        return best


class BestPhase(RoundPhase):
    """Compares each round with the best one, and holds the state of the best.

    Args:
        parts: of the run, whose experiment has `best`.
        settings: the experiment's `best`.
        earlier: records of the rounds done.
        checkpoint: after these rounds; None at the beginning.
    """

    def __init__(
        self, parts: RunParts, settings: BestSettings, earlier: Sequence[RoundRecord], checkpoint: Checkpoint | None
    ) -> None:
        self._parts, self._settings = parts, settings
        self._best = Best.replayed(settings, earlier)
        pinned = {} if checkpoint is None else checkpoint.pinned
        state = None if checkpoint is None or not checkpoint.best else pinned[checkpoint.best]
        self.state: Pinned | None = state
        """The best round's strategy state; None before there is one."""
        self.pinned: Mapping[str, Pinned] = {} if state is None else {state.sha256: state, **_named_in(state, pinned)}
        """It, and the pinned records it refers to, by digest."""

    @property
    def exhausted(self) -> bool:
        """Return whether the run should end early."""
        return self._best.exhausted

    @property
    def round(self) -> int:
        """Return the best round; 0 before there is one."""
        return self._best.round

    @property
    def evaluation(self) -> Mapping[str, float] | None:
        """Return the best round's evaluation; None before there is one."""
        return self._best.evaluation if self._best.round else None

    def run(self, round: OpenRound) -> None:
        if self._best.look(round.number, round.evaluation):
            self.state = Pinned.of(dump_state(round.state))
            self.pinned = {self.state.sha256: self.state, **pinned_in(round.state)}

    def recorded(self, round: OpenRound) -> None:
        """Emit a notice if the run ends early with this round."""
        if self.exhausted and round.number != self._parts.experiment.max_rounds:
            best = self._best
            self._parts.emit(
                Notice(
                    run_id=self._parts.run_id,
                    message=f"round {round.number}: {self._settings.metric} has not gained in {best.without_gain} "
                    f"evaluations since round {best.round} ({best.value:.6g}); the run ends early (best.patience)",
                )
            )

    def arrays(self) -> Arrays | None:
        """Return the best round's model; None before there is one."""
        if self.state is None:
            return None
        strategy = self._parts.strategy
        return strategy.arrays(load_state(strategy.State, self.state, self.pinned))

    def found(self, rounds: int) -> BestRound | None:
        """Return the best round for a summary; None before there is one.

        Args:
            rounds: done so far.
        """
        best = self._best
        if not best.round:
            return None
        early = best.exhausted and rounds != self._parts.experiment.max_rounds
        return BestRound(metric=self._settings.metric, value=best.value, round=best.round, stopped_early=early)


def _named_in(state: Pinned, pinned: Mapping[str, Pinned]) -> dict[str, Pinned]:
    """Return the pinned records that a dumped state names."""
    named = [how["pinned"] for how in state.info.values() if isinstance(how, dict) and "pinned" in how]
    digests = [each for entry in named for each in ([entry] if isinstance(entry, str) else entry)]
    return {sha256: pinned[sha256] for sha256 in digests}
