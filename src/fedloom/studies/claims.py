"""Claims judged by the numbers: supported, not supported, undecided, reported, or not measured.

A bound on a number is judged by the number's interval: it holds if all of the interval satisfies it, does not hold if
none of it does, and is undecided otherwise. Two bounds on one number are a test of equivalence (two one-sided tests).
Only primary claims have p-values, which are corrected together by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedloom.studies.claim_settings import Check, Claim
from fedloom.studies.definition import Definition
from fedloom.studies.statistics import Estimate, holm

Outcome = Literal["supported", "not supported", "undecided", "reported", "not measured"]
_ORDER: tuple[Outcome, ...] = ("not measured", "not supported", "undecided", "supported")
"""What a claim with several bounds is: the first of these that one of its bounds is."""
Estimates = Mapping[str, Mapping[str, Estimate]]
"""By arm, or `ARM against ARM`, and number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The outcome of a claim in one scenario."""

    claim: str
    scenario: str
    arm: str
    text: str
    outcome: Outcome
    """`reported` if the claim sets no bound."""
    numbers: Mapping[str, Estimate]
    """The numbers it is based on."""
    bounds: tuple[str, ...]
    """Its bounds, in words."""
    earlier: str
    """The result of an earlier measurement."""
    primary: bool = False
    """Whether it is one of the study's primary hypotheses."""
    corrected: Mapping[str, float] = field(default_factory=dict)
    """p-values after Holm's correction, by `NUMBER.p_less` or `NUMBER.p_greater`."""


def judge(definition: Definition, scenarios: Mapping[str, Estimates]) -> tuple[Verdict, ...]:
    """Judge every claim in every scenario it is about."""
    found_claims = [
        (claim, name, scenarios.get(name, {}).get(claim.subject, {}))
        for claim in definition.claims
        for name in (claim.scenarios or tuple(definition.conditions))
    ]
    corrected = _corrected([(claim, found) for claim, _, found in found_claims])
    return tuple(_verdict(*each, p) for each, p in zip(found_claims, corrected, strict=True))


def _corrected(found_claims: Sequence[tuple[Claim, Mapping[str, Estimate]]]) -> list[dict[str, float]]:
    """Return the p-values of each claim in each scenario, corrected over all of the study that were measured."""
    places = [
        (index, check.of, p)
        for index, (claim, found) in enumerate(found_claims)
        for check in claim.checks
        if check.is_p and (p := _p(check, found)) is not None
    ]
    made: list[dict[str, float]] = [{} for _ in found_claims]
    for (index, of, _), p in zip(places, holm([p for _, _, p in places]), strict=True):
        made[index][of] = p
    return made


def _verdict(claim: Claim, scenario: str, found: Mapping[str, Estimate], corrected: Mapping[str, float]) -> Verdict:
    names = dict.fromkeys(claim.shows or (check.number for check in claim.checks))
    outcomes = [_judged(check, found, corrected) for check in claim.checks]
    if not names or any(name not in found for name in names):
        outcomes = ["not measured"]
    return Verdict(
        claim=claim.id,
        scenario=scenario,
        arm=claim.subject,
        text=claim.text,
        outcome=min(outcomes, key=_ORDER.index, default="reported"),
        numbers={name: found[name] for name in names if name in found},
        bounds=tuple(_words(check) for check in claim.checks),
        earlier=claim.earlier.get(scenario, ""),
        primary=claim.primary,
        corrected=corrected,
    )


def _judged(check: Check, found: Mapping[str, Estimate], corrected: Mapping[str, float]) -> Outcome:
    if check.is_p:
        p = corrected.get(check.of)
        return "not measured" if p is None else "supported" if p <= (check.at_most or 0.0) else "undecided"
    if check.number not in found:
        return "not measured"
    low, high = found[check.number].low, found[check.number].high
    if found[check.number].count == 1:
        return "undecided"
    outside = [check.at_least is not None and high < check.at_least, check.at_most is not None and low > check.at_most]
    inside = (check.at_least is None or low >= check.at_least) and (check.at_most is None or high <= check.at_most)
    return "not supported" if any(outside) else "supported" if inside else "undecided"


def _p(check: Check, found: Mapping[str, Estimate]) -> float | None:
    estimate = found.get(check.number)
    if estimate is None:
        return None
    return estimate.p_less if check.part == "p_less" else estimate.p_greater


def _words(check: Check) -> str:
    bounds = [f"≥ {check.at_least:g}"] if check.at_least is not None else []
    bounds += [f"≤ {check.at_most:g}"] if check.at_most is not None else []
    return f"{check.of} {' and '.join(bounds)}"
