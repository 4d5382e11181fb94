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
    """One client's data summary, sent by a watch."""

    num_examples: int
    """Number of examples it covers."""
    info: Info
    """JSON; each float counts as one parameter sent."""
    metrics: Metrics = field(default_factory=dict)
    """Further facts, such as the accuracy if there are labels."""


class Watch(ABC):
    """A monitor's client half, in its `watch.py`: summarises a client's data."""

    def check(self, workload: object) -> None:  # noqa: B027  # optional: by default every workload will do
        """Reject a workload that lacks what the watch needs (`core.protocols.require`), before the first round."""

    @abstractmethod
    def __call__(self, workload: object, inputs: Inputs, shard: Shard, rng: np.random.Generator) -> Observation:
        """Observe the global model on one client's data.

        Args:
            workload: the client's; a watch `require`s the capability it needs.
            inputs: the strategy's inputs for evaluating the global model.
            shard: the client's data.
            rng: the job's own randomness.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorRequest:
    """Which clients are watched in a round."""

    clients: tuple[int, ...]
    """Clients, in order; or, with `parts`, parts of the held-out data."""
    parts: int | None = None
    """Number of parts the held-out data is split into, each standing for a client's new data; None for training
    data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorReading:
    """A monitor's conclusion from a round's reports."""

    metrics: Mapping[str, float]
    """Shown next to the evaluation's metrics."""
    info: Info
    """For the round's record, JSON; those of earlier rounds are passed to `read`."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Warnings by name. Each is printed when it appears and when it ends."""


class Monitor(ABC):
    """The server half of label-free monitoring: `monitor.py` of its folder.

    Pure: its conclusions of earlier rounds are passed in, so that a resumed run continues identically.
    """

    @abstractmethod
    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        """Return which clients are watched in a round."""

    @abstractmethod
    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        """Return the conclusion from the reports. A report's `info` and `metrics` are its observation's."""
