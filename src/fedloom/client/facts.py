"""Facts about its machine that an agent sends when it connects, each with a description."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping

from fedloom.core.messages import INSTANCE

_FACTS: Mapping[str, tuple[str, Callable[[], object]]] = {
    "host": ("the machine's name", platform.node),
    "pid": ("the agent's process id", os.getpid),
    "cores": ("the number of cores", lambda: os.cpu_count() or 1),
    "machine": ("the kind of processor", platform.machine),
    "python": ("Python's version", platform.python_version),
}
WORDS: Mapping[str, str] = {
    **{name: words for name, (words, _) in _FACTS.items()},
    INSTANCE: "a random word of the running agent, by which two machines with one identity are distinguished",
}
"""What each fact is, by its name."""


def facts(instance: str) -> dict[str, object]:
    """Return the facts.

    Args:
        instance: the random word of this agent.
    """
    return {**{name: value() for name, (_, value) in _FACTS.items()}, INSTANCE: instance}
