"""Destinations of a run's events."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from fedloom.core.events import Event


@runtime_checkable
class Sink(Protocol):
    """A receiver of a run's events: files, the terminal, metrics, watchers."""

    def write(self, event: Event) -> None:
        """Process one event."""

    def close(self) -> None:
        """Flush the buffer and close."""
