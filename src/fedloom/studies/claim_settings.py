"""Settings of a study's claims: statements, and the numbers and bounds that decide them."""

from __future__ import annotations

from typing import Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError


class Check(Settings):
    """A bound on one number of an arm, judged by the number's interval."""

    of: str
    """`NUMBER`, whose whole 95 % interval must lie within the bounds; or `NUMBER.p_less`, `NUMBER.p_greater`, the
    p-value of a primary claim, after Holm's correction over all of the study's."""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def number(self) -> str:
        """Return the number's name."""
        return self.of.partition(".")[0]

    @property
    def part(self) -> str:
        """Return what is bounded: `p_less`, `p_greater`, or an empty text for the number's interval."""
        return self.of.partition(".")[2]

    @property
    def is_p(self) -> bool:
        """Return whether it bounds a p-value."""
        return self.part != ""

    @pydantic.model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.part not in ("", "p_less", "p_greater"):
            raise ConfigError(
                f"claims.checks: {self.of!r} has no part {self.part!r}; write {self.number!r}, which is judged by its "
                f"whole interval, or {self.number}.p_less, {self.number}.p_greater"
            )
        if self.at_most is None and self.at_least is None:
            raise ConfigError(f"claims.checks: {self.of!r} has no bound; set at_most or at_least")
        if self.is_p and (self.at_most is None or self.at_least is not None):
            raise ConfigError(f"claims.checks: {self.of!r} is a p-value; set at_most, and at_most alone")
        return self


class Claim(Settings):
    """A statement and the numbers that decide it."""

    id: str
    """A short name."""
    text: str
    """The statement in words."""
    arm: str
    """The arm it is about."""
    against: str | None = None
    """Another arm than the study's reference to compare it with."""
    scenarios: tuple[str, ...] = ()
    """Scenarios in which it is judged; all if empty."""
    primary: bool = False
    """Whether the study was made for this hypothesis; only then may it bound p-values, which are corrected together."""
    checks: tuple[Check, ...] = ()
    """All must hold. Without any, the numbers of `shows` are only reported."""
    shows: tuple[str, ...] = ()
    """Numbers to report; by default those of the checks."""
    earlier: dict[str, str] = Field(default_factory=dict)
    """Results of an earlier measurement, by scenario; printed next to these."""

    @pydantic.model_validator(mode="after")
    def _p_of_primary_claims(self) -> Self:
        for check in self.checks:
            if check.is_p and not self.primary:
                raise ConfigError(
                    f"claims ({self.id}): {check.of!r} bounds a p-value; set primary = true if the study was made for "
                    "this claim, else bound the number itself"
                )
        return self

    @property
    def subject(self) -> str:
        """Return whose numbers decide: the arm, or `ARM against ARM`."""
        return self.arm if self.against is None else f"{self.arm} against {self.against}"
