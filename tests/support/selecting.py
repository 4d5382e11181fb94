"""What the tests of selections share: the types of their fixtures, and a probe that must be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from fedloom.core.protocols import Probe, Roster, Selection
from fedloom.core.records import ClientReport

S = TypeVar("S")


@dataclass(frozen=True)
class Examples:
    """A shard that is nothing but its size."""

    num_examples: int


class Reports(Protocol):
    """Makes one report per client."""

    def __call__(
        self,
        clients: Sequence[int],
        losses: Sequence[float] | None = None,
        examples: Sequence[int] | None = None,
        seconds: Sequence[float] | None = None,
        **info: Sequence[object],
    ) -> list[ClientReport]: ...


class Build(Protocol):
    """Makes a selection from its name and settings; the test knows what its states are."""

    def __call__(self, name: str, **settings: object) -> Selection[Any]: ...


class Fits(Protocol):
    """Says whether counts are what their expectations say."""

    def __call__(self, counts: Sequence[float], expected: Sequence[float] | np.ndarray) -> bool: ...


def probed(selection: Selection[S], state: S, roster: Roster, size: int, rng: np.random.Generator) -> Probe:
    """The probe a selection asks for; it must ask for one."""
    probe = selection.probe(state, roster, size, rng)
    if probe is None:
        raise AssertionError(f"{selection} asks for no probe of {size} clients")
    return probe
