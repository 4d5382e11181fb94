"""Resources and permissions an agent's machine gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedloom.client.guard import Guard
from fedloom.client.helper_processes.inline import InlineHelpers
from fedloom.client.leftovers import Leftovers
from fedloom.client.memory import MemoryLimits
from fedloom.client.node_values import Value
from fedloom.core.protocols import Helpers


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSetup:
    """Everything about an agent but its name and its way to the server."""

    guard: Guard | None = None
    """The node's own policy; None if the server owns the node, too."""
    memory: MemoryLimits = field(default_factory=MemoryLimits)
    helpers: Helpers = field(default_factory=InlineHelpers)
    """Starts the helpers that a workload requests."""
    leftovers: Leftovers | None = None
    """Ends what a run's code has started, in a program of fedloom's own; None if something else does, or nothing."""
    states: Path | None = None
    """Folder for clients' states stored on the node; None takes one of the node's name below the user's
    state folder."""
    node_values: Mapping[str, Value] = field(default_factory=dict)
    """The node's own values for hosted apps (`client.node_values`)."""
    debug: bool = False
    """Raise `ClientFailed` from a client's exception instead of reporting it, so that a debugger stops where it
    happened (inline runtime)."""

    interruptible: bool = False
    """Whether `KeyboardInterrupt` is the user's Ctrl-C (inline runtime); otherwise it is a client's failure, as every
    other exception of its code."""

    def contains(self, exc: BaseException) -> bool:
        """Return whether an exception from a client's code is that client's failure."""
        return not (self.interruptible and isinstance(exc, KeyboardInterrupt))

    @property
    def max_helpers(self) -> int | None:
        """Return the number of helpers that may run at a time; None for any number."""
        return None if self.guard is None else self.guard.policy.limits.helpers
