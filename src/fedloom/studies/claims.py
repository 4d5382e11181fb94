"""Claims judged by the numbers: held, not held, or not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedloom.core.errors import ConfigError
from fedloom.studies.definition import Check, Claim, Definition
from fedloom.studies.statistics import Estimate

Outcome = Literal["held", "not held", "told", "not measured"]
_PARTS = ("value", "low", "high", "p_less", "p_greater")
Estimates = Mapping[str, Mapping[str, Estimate]]
"""By arm, or `ARM against ARM`, and number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a claim in one scenario."""

    claim: str
    scenario: str
    arm: str
    text: str
    outcome: Outcome
    """`told` where the claim sets no bound."""
    numbers: Mapping[str, Estimate]
    """The numbers it rests on."""
    bounds: tuple[str, ...]
    """Its bounds, in words."""
    earlier: str
    """What an earlier measurement said."""


def judge(definition: Definition, scenarios: Mapping[str, Estimates]) -> tuple[Verdict, ...]:
    """Every claim in every scenario it is about.

    Raises:
        ConfigError: a check names a part of a number that does not exist.
    """
    return tuple(
        _verdict(claim, name, scenarios.get(name, {}).get(claim.subject, {}))
        for claim in definition.claims
        for name in (claim.scenarios or tuple(definition.conditions))
    )


def _verdict(claim: Claim, scenario: str, found: Mapping[str, Estimate]) -> Verdict:
    names = dict.fromkeys(claim.shows or (check.of.partition(".")[0] for check in claim.checks))
    needed = [*names, *(check.of.partition(".")[0] for check in claim.checks)]
    answers = [_holds(claim, check, found) for check in claim.checks]
    outcome: Outcome
    if not needed or any(name not in found for name in needed) or None in answers:
        outcome = "not measured"
    elif not answers:
        outcome = "told"
    else:
        outcome = "held" if all(answers) else "not held"
    return Verdict(
        claim=claim.id,
        scenario=scenario,
        arm=claim.subject,
        text=claim.text,
        outcome=outcome,
        numbers={name: found[name] for name in names if name in found},
        bounds=tuple(_words(check) for check in claim.checks),
        earlier=claim.earlier.get(scenario, ""),
    )


def _holds(claim: Claim, check: Check, found: Mapping[str, Estimate]) -> bool | None:
    """Whether the bound holds; None where there is no such number."""
    name, _, part = check.of.partition(".")
    if (part or "value") not in _PARTS:
        raise ConfigError(f"claims ({claim.id}): {check.of!r} has no part {part!r}; parts: {', '.join(_PARTS)}")
    value = getattr(found[name], part or "value") if name in found else None
    if value is None:
        return None
    below = check.at_most is None or value <= check.at_most
    above = check.at_least is None or value >= check.at_least
    return bool(below and above)


def _words(check: Check) -> str:
    bounds = [f"≥ {check.at_least:g}"] if check.at_least is not None else []
    bounds += [f"≤ {check.at_most:g}"] if check.at_most is not None else []
    return f"{check.of} {' and '.join(bounds)}"
