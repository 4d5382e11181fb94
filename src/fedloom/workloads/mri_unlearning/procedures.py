"""The unlearning procedures: which slices each trains on, and what it minimises on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Retained = Literal["none", "share", "all"]
Forgotten = Literal["none", "plain", "noisy", "ascent"]


@dataclass(frozen=True, slots=True)
class Procedure:
    """The objective of one model, J the reconstruction loss; x_r, x_f slices to retain and to forget."""

    title: str
    retained: Retained
    """Retain slices used: J(x_r, y)."""
    forgotten: Forgotten
    """Forget slices: `plain` J(x_f, y); `noisy` J(x_f, y + lambda N(0, 1)); `ascent` -J(x_f, y) + gamma |theta|_1."""


TRAINING: Mapping[str, Procedure] = {
    "original": Procedure("original", "all", "plain"),
    "oracle": Procedure("oracle (retrained without)", "all", "none"),
}
"""What the models of the first rounds are trained on."""
PROCEDURES: Mapping[str, Procedure] = {
    "ft": Procedure("FT", "share", "none"),
    "ft_full": Procedure("full FT", "all", "none"),
    "ga": Procedure("GA", "none", "ascent"),
    "nl": Procedure("NL", "none", "noisy"),
    "ga_ft": Procedure("GA-FT", "share", "ascent"),
    "nl_ft": Procedure("NL-FT", "share", "noisy"),
}
"""What continues the original, by name; retraining, the gold standard, is the oracle."""


def procedure_of(member: str) -> Procedure:
    """Return a model's objective by its name."""
    return TRAINING[member] if member in TRAINING else PROCEDURES[member]
