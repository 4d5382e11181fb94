"""The server half of a federated algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from fedloom.core.accumulators import Accumulator
from fedloom.core.records import MODEL, Arrays, Exchange, Info, Record, RoundContext

S = TypeVar("S")
A = TypeVar("A", bound=Accumulator)


@dataclass(frozen=True, slots=True)
class Pending(Generic[S]):
    """Result of `finish` when the round is not over: the state so far and one more exchange."""

    state: S
    exchange: Exchange


class Strategy(ABC, Generic[S, A]):
    """A federated algorithm as a pure value: state in, state out.

    No I/O, no clock, no randomness but `context.rng`, no mutation of arguments. `S` is a frozen dataclass of arrays (or
    mappings of them) and JSON values, so that the platform can save it (`core.state`). `A` is the accumulator its
    exchanges name; a strategy whose exchanges use several declares their union. The client half, if there is one,
    is the folder's `rule.py`; a custom aggregation is its `accumulator.py`.
    """

    State: ClassVar[type]
    """The dataclass of its states, restored from a checkpoint."""

    evaluates: bool = False
    """Whether `evaluation` replaces the platform's evaluation on held-out data."""

    @abstractmethod
    def init(self, model: Record) -> S:
        """Return the state before round 1, from the workload's initial record."""

    @abstractmethod
    def plan(self, state: S, context: RoundContext) -> Exchange | None:
        """Return the round's first exchange; None if the strategy plans no further round."""

    @abstractmethod
    def finish(self, state: S, total: A, context: RoundContext) -> S | Pending[S]:
        """Return the state after the exchange, or one more exchange of the same round.

        Args:
            state: as `plan` or the exchange before left it.
            total: the accumulator with at least one update; it may be consumed.
            context: the round's facts.
        """

    @abstractmethod
    def arrays(self, state: S) -> Arrays:
        """Return the global model: what is exported and hashed, and evaluated by default."""

    def model_inputs(self, state: S) -> Mapping[str, Record]:
        """Return the inputs from which clients evaluate the global model.

        By default the model's arrays alone. A strategy that trains on top of a frozen base sends both.
        """
        return {MODEL: Record({MODEL: self.arrays(state)})}

    def evaluation(self, state: S) -> Mapping[str, float] | None:
        """Return the round's evaluation if `evaluates` is true; None if this round has none."""
        return None

    def report(self, state: S) -> Info:
        """Return JSON numbers for the round's record."""
        return {}

    def unfinished(self, state: S) -> str:
        """Return why the run is not complete although its last round is over; empty, the default, if it is."""
        return ""

    def close(self) -> None:
        """Release resources a strategy holds outside its state, such as a hosted app's thread."""
