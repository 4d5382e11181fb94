"""Modes of learning by name: a base, and the parts of MLAAN on top of it."""

from __future__ import annotations

from dataclasses import dataclass

from fedloom.core.errors import ConfigError
from fedloom.core.text import did_you_mean

END_TO_END = "end_to_end"
BASES = ("greedy", "dgl", "infopro", "auglocal")
"""Ways of learning module by module."""
PARTS = ("mlm", "lam", "mlaan")
"""`mlm`: multilaminar local modules; `lam`: leap augmented modules; `mlaan`: both."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One way of learning."""

    name: str
    base: str
    """`end_to_end` or one of `BASES`."""
    multilaminar: bool = False
    """Whether each module has an independent loss and a loss of the window of modules that ends with it."""
    leap: bool = False
    """Whether auxiliary networks begin with copies of later blocks."""

    @property
    def is_local(self) -> bool:
        """Return whether gradients stay within modules, or within windows of them."""
        return self.base != END_TO_END


def names() -> tuple[str, ...]:
    """Return the name of every mode: each base alone, and with each part of MLAAN."""
    return (END_TO_END, *(f"{base}{part}" for base in BASES for part in ("", *(f"_{part}" for part in PARTS))))


def mode(name: str) -> Mode:
    """Return the mode of a name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in names():
        hint = did_you_mean(name, names())
        raise ConfigError(f"workload.modes: unknown mode {name!r}; {hint}available: {', '.join(names())}")
    base, _, part = name.partition("_") if name != END_TO_END else (name, "", "")
    return Mode(name, base, multilaminar=part in ("mlm", "mlaan"), leap=part in ("lam", "mlaan"))
