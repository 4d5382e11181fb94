"""Memory limits of an agent besides the current group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedloom.client import input_cache, parked, record_cache
from fedloom.client.policy import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimits:
    """Limits of the array data an agent caches for all its runs together; bytes. Beyond them the oldest is dropped."""

    parked_bytes: int = parked.LIMIT_BYTES
    """Parked updates. A dropped one is trained again, which the round's record reports."""
    inputs_bytes: int = input_cache.LIMIT_BYTES
    """Inputs of the runs' current exchanges. A dropped one is fetched again."""
    pinned_bytes: int = record_cache.LIMIT_BYTES
    """Pinned records, such as frozen bases. A dropped one is fetched again."""

    @classmethod
    def of(cls, limits: Limits) -> Self:
        """Read a node's policy."""
        inputs = limits.inputs_mb * 10**6
        return cls(parked_bytes=limits.parked_mb * 10**6, inputs_bytes=inputs, pinned_bytes=inputs)
