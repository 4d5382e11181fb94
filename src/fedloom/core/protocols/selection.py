"""Which clients take part in a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import numpy as np

from fedloom.core.protocols.workload import Shard
from fedloom.core.records import ClientReport, Info, Record, Update

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Roster:
    """The federation's clients as a selection sees them; virtual clients are not listed one by one."""

    population: int
    """Clients in the federation, N."""
    sizes: Sequence[int] = ()
    """Examples per client if the workload declares them, otherwise empty."""
    label_counts: Sequence[Sequence[int]] = ()
    """Examples per class for each client if the workload declares them, otherwise empty."""
    names: Sequence[str] = ()
    """Each client's name if clients are machines, otherwise empty."""
    offline: Collection[int] = frozenset()
    """Clients that are unreachable now; virtual clients never are."""

    def name(self, client: int) -> str:
        """Return a client's name: its machine's, or `client-K` for a virtual one."""
        return self.names[client] if self.names else f"client-{client}"

    def online(self, client: int) -> bool:
        """Return whether a client can be reached now."""
        return client not in self.offline


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Candidates to be measured before the cohort is chosen among them."""

    candidates: tuple[int, ...]
    """Distinct clients, in the order of their reports."""
    kind: str
    """`evaluate`: the global model's metrics on the client's training data. `measure`: the report of `measure`
    only. `train`: local training, whose update stays parked on the client until it is collected (or dropped at
    the end of the round)."""
    measure: str | None = None
    """Name of the selection folder whose `measure.py` computes a candidate's report."""
    knobs: Info = field(default_factory=dict)
    """Settings the measure sees, JSON (merged over the exchange's own)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtraReport:
    """An additional report by every client of the cohort besides its update."""

    measure: str
    """Name of the selection folder whose `measure.py` computes it."""
    knobs: Info = field(default_factory=dict)
    """Settings the measure sees, JSON (merged over the exchange's own)."""


class Selection(ABC, Generic[S]):
    """Chooses the clients of a round. Pure, with an explicit state; composes with any strategy."""

    State: ClassVar[type]
    """The dataclass its states are."""

    @abstractmethod
    def init(self, roster: Roster) -> S:
        """Return the state before round 1."""

    def probe(self, state: S, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        """Return candidates to measure before choosing; None chooses from existing knowledge.

        `rng` is the stream `choose` gets in a round without a probe; after a probe `choose` has a separate one.
        """
        return None

    @abstractmethod
    def choose(
        self, state: S, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[ClientReport] = ()
    ) -> tuple[int, ...]:
        """Return distinct clients, 0 <= client < roster.population, in the order they will be aggregated.

        Usually `size` of them; a selection whose cohort is random may return fewer, more or none. With none the round
        leaves the model as it is. `reports` are the probe's, in candidate order; after a `train` probe only candidates
        that reported may be chosen.
        """

    def extra_report(self, state: S) -> ExtraReport | None:
        """Return the additional report of the cohort's clients; None for none."""
        return None

    def observe(self, state: S, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> S:
        """Return the state after a round.

        Args:
            state: as `probe` and `choose` saw it.
            reports: of the clients that trained in the round.
            probed: the probe's, as passed to `choose`; empty without a probe.
        """
        return state

    def missed(self, state: S, clients: Sequence[int]) -> S:
        """Return the state after `observe`, updated with the sampled clients that sent no update."""
        return state

    def grow(self, state: S, roster: Roster) -> S:
        """Return the state for a roster with more clients than before; the new ones have the highest numbers."""
        return state

    def report(self, state: S) -> Info:
        """Return JSON numbers for the round's record."""
        return {}


class Measure(ABC):
    """Computes a client's report about itself: a selection's client half, in its `measure.py`."""

    @abstractmethod
    def __call__(
        self,
        workload: object,
        model: Record,
        update: Update,
        shard: Shard,
        rng: np.random.Generator,
        knobs: Info,
    ) -> Info:
        """Return numbers for the client's report.

        Args:
            workload: the client's; a measure `require`s the capability it needs (`core.protocols.require`).
            model: the global model as received.
            update: the client's update; its arrays may be views and must not be retained. Without arrays if the client
                did not train.
            shard: the client's training data.
            rng: one stream for this client and round, for draws that before and after must share.
            knobs: settings of the exchange and the job.

        Returns:
            JSON: floats and lists of floats. Each float counts as one parameter sent.
        """

    def together(
        self,
        workload: object,
        model: Record,
        updates: Sequence[Update],
        shards: Sequence[Shard],
        rngs: Sequence[np.random.Generator],
        knobs: Sequence[Info],
    ) -> list[Info] | None:
        """Compute the reports of a whole group at once; return None if this workload does not allow it."""
        return None
