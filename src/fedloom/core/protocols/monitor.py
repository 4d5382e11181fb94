"""Quality of the global model on data without labels: a monitor on the server, its watch on the clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedloom.core.protocols.rule import Inputs
from fedloom.core.protocols.workload import Shard
from fedloom.core.records import ClientReport, Info, Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What a watch sends of one client's data."""

    num_examples: int
    """Examples it was taken over."""
    info: Info
    """JSON; each float counts as one parameter sent."""
    metrics: Metrics = field(default_factory=dict)
    """What is known beside it, such as the accuracy where there are labels."""


class Watch(ABC):
    """A monitor's client half, in its `watch.py`: what a client sends instead of its data."""

    def check(self, workload: object) -> None:  # noqa: B027  # optional: by default every workload will do
        """Refuse a workload that lacks what the watch needs (`core.protocols.require`), before the first round."""

    @abstractmethod
    def __call__(self, workload: object, inputs: Inputs, shard: Shard, rng: np.random.Generator) -> Observation:
        """Observe the global model on one client's data.

        Args:
            workload: the client's; a watch `require`s the capability it needs.
            inputs: what the strategy sends to evaluate the global model.
            shard: the client's data.
            rng: the job's own randomness.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorRequest:
    """Which clients are watched in a round."""

    clients: tuple[int, ...]
    """Clients, in order; or, with `parts`, parts of the held-out data."""
    parts: int | None = None
    """Number of parts the held-out data is split into, each standing for a client's new data; None asks for training
    data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorReading:
    """What a monitor concludes from a round's reports."""

    metrics: Mapping[str, float]
    """Shown beside the evaluation's metrics."""
    info: Info
    """For the round's record, JSON; those of earlier rounds are handed to `read`."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Warnings by name. Each is printed when it appears and when it is over."""


class Monitor(ABC):
    """The server half of label-free monitoring: `monitor.py` of its folder.

    Pure: it is handed what it concluded in earlier rounds, so that a resumed run continues alike.
    """

    @abstractmethod
    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        """Return which clients are watched in a round."""

    @abstractmethod
    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        """Return what the reports say. A report's `info` and `metrics` are its observation's."""
