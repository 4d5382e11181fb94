"""The state of selections that keep nothing between rounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing to remember."""
