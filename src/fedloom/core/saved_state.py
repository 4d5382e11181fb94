"""A strategy's state out of a run's folder, for what works on finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedloom.core.config import Experiment
from fedloom.core.plugins import AnyStrategy
from fedloom.core.protocols import WorkloadInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """What a run's newest checkpoint holds for its strategy."""

    folder: Path
    """The run's."""
    round: int
    """The round that ended with this state; 0 is the initial model's."""
    experiment: Experiment
    strategy: AnyStrategy
    state: object
    """Of the strategy's class `State`."""
    workload: WorkloadInfo | None
    """What the workload says about its data; None if the run has not recorded it."""
