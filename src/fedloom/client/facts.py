"""Facts about its machine that an agent sends when it connects, each with a description."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Collection, Mapping

from fedloom.core.messages import INSTANCE

_VALUES = "node_config"

_FACTS: Mapping[str, tuple[str, Callable[[], object]]] = {
    "host": ("the machine's name", platform.node),
    "pid": ("the agent's process id", os.getpid),
    "cores": ("the number of cores", lambda: os.cpu_count() or 1),
    "machine": ("the kind of processor", platform.machine),
    "python": ("Python's version", platform.python_version),
}
WORDS: Mapping[str, str] = {
    **{name: words for name, (words, _) in _FACTS.items()},
    _VALUES: "the names, not the values, of the node's own values for hosted apps (`node-config.toml`), if it has any",
    INSTANCE: "a random word of the running agent, by which two machines with one identity are distinguished",
}
"""What each fact is, by its name."""


def facts(instance: str, values: Collection[str] = ()) -> dict[str, object]:
    """Return the facts.

    Args:
        instance: the random word of this agent.
        values: names of the node's own values for hosted apps.
    """
    named = {_VALUES: " ".join(sorted(values))} if values else {}
    return {**{name: value() for name, (_, value) in _FACTS.items()}, **named, INSTANCE: instance}
