"""Processes or Ray actors of a workload besides its own, started by the runtime it runs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Resources of one helper."""

    cpus: float = 1.0
    """CPU cores; dimensionless."""
    gpus: float = 0.0
    """GPUs, or a fraction of one."""


class HelperHandle(Protocol):
    """A running helper, as the workload that started it calls it."""

    def call(self, method: str, *arguments: object) -> object:
        """Call one of the helper's methods and wait for its result.

        Arguments and results are copied between the processes (NumPy arrays, numbers, text, and containers of them);
        neither side may rely on sharing them.

        Raises:
            ClientFailed: the method raised, or the helper's process ended; the message has its traceback.
        """

    def stop(self) -> None:
        """End the helper. May be called twice; a runtime ends those that are left."""


class Helpers(Protocol):
    """Starts helpers where the workload runs: in this process (inline), as child processes, or as Ray actors."""

    def start(
        self, factory: Callable[..., object], *arguments: object, resources: Resources = Resources()
    ) -> HelperHandle:
        """Start one helper.

        Args:
            factory: an importable, top-level callable that makes the helper's object in its own process.
            arguments: for the factory, copied.
            resources: its needs.

        Raises:
            PolicyRefused: the node's policy allows no further helper.
            NoCapacity: the runtime cannot start another.
        """


@runtime_checkable
class UsesHelpers(Protocol):
    """A workload that uses helpers."""

    def use_helpers(self, helpers: Helpers) -> None:
        """Receive the object that starts them; called once, before the workload's first job."""
