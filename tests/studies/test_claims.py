"""Claims against intervals made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fedloom.core.errors import ConfigError
from fedloom.studies.claims import Verdict, judge
from fedloom.studies.definition import Definition
from fedloom.studies.statistics import Estimate

BASE = {
    "rounds": 1,
    "clients": 2,
    "cohort": 1,
    "strategy": "fedavg",
    "workload": {"name": "fedloom.testing.linear"},
}


def study(*claims: dict[str, Any]) -> Definition:
    named = [{"id": str(index), "text": "a claim", "arm": "ours", **claim} for index, claim in enumerate(claims)]
    return Definition.parse(
        {"name": "made", "base": BASE, "reference": "theirs", "arms": {"theirs": {}, "ours": {}}, "claims": named}
    )


def judged(found: dict[str, Estimate], *claims: dict[str, Any]) -> list[Verdict]:
    return list(judge(study(*claims), {"base": {"ours": found}}))


def between(low: float, high: float, **fields: Any) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high, count=5, **fields)


@pytest.mark.parametrize(
    ("low", "high", "bounds", "outcome"),
    [
        (0.1, 0.3, {"at_least": 0.0}, "supported"),
        (-0.1, 0.3, {"at_least": 0.0}, "undecided"),  # the mean is above the bound, which is not enough
        (-0.3, -0.1, {"at_least": 0.0}, "not supported"),
        (-0.3, -0.1, {"at_most": 0.0}, "supported"),
        (0.1, 0.3, {"at_most": 0.0}, "not supported"),
        (-0.004, 0.003, {"at_least": -0.005, "at_most": 0.005}, "supported"),  # equivalent within half a point
        (-0.004, 0.006, {"at_least": -0.005, "at_most": 0.005}, "undecided"),
        (0.006, 0.009, {"at_least": -0.005, "at_most": 0.005}, "not supported"),
        (-0.0049, 0.9, {"at_least": -0.005}, "supported"),  # not worse by more than the margin
    ],
)
def test_a_bound_is_judged_by_the_whole_interval(
    low: float, high: float, bounds: dict[str, float], outcome: str
) -> None:
    (verdict,) = judged({"final_difference": between(low, high)}, {"checks": [{"of": "final_difference", **bounds}]})
    assert verdict.outcome == outcome


def test_a_single_seed_decides_nothing_and_what_is_missing_is_not_measured() -> None:
    check = {"of": "final_difference", "at_least": 0.0}
    alone = {"final_difference": Estimate(value=9.0, low=9.0, high=9.0, count=1)}
    assert [each.outcome for each in judged(alone, {"checks": [check]})] == ["undecided"]
    assert [each.outcome for each in judged({}, {"checks": [check]})] == ["not measured"]


def test_the_worst_of_several_bounds_is_the_outcome() -> None:
    found = {"a": between(1.0, 2.0), "b": between(-1.0, 1.0), "c": between(-2.0, -1.0)}
    above = {name: {"of": name, "at_least": 0.0} for name in found}
    claims: list[dict[str, Any]] = [{"checks": [above[name] for name in names]} for names in ("ab", "abc")]
    claims.append({"shows": ["a"]})
    assert [each.outcome for each in judged(found, *claims)] == ["undecided", "not supported", "reported"]


def test_p_values_of_primary_claims_are_corrected_together() -> None:
    # 0.03 and 0.04 would each pass alone; together they are 2 x 0.03 = 0.06 and max(0.06, 0.04) = 0.06.
    found = {"a": between(0.1, 0.2, p_less=0.03), "b": between(0.1, 0.2, p_less=0.04)}
    claims = [{"primary": True, "checks": [{"of": f"{name}.p_less", "at_most": 0.05}]} for name in found]
    verdicts = judged(found, *claims)
    assert [each.outcome for each in verdicts] == ["undecided", "undecided"]
    assert [p for each in verdicts for p in each.corrected.values()] == pytest.approx([0.06, 0.06])
    assert [each.outcome for each in judged(found, claims[0])] == ["supported"]


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"checks": [{"of": "a.p_less", "at_most": 0.05}]}, "set primary = true"),
        ({"primary": True, "checks": [{"of": "a.p_less", "at_least": 0.05}]}, "is a p-value; set at_most"),
        ({"checks": [{"of": "a.low", "at_least": 0.0}]}, "write 'a', which is judged by its whole interval"),
        ({"checks": [{"of": "a"}]}, "has no bound"),
    ],
)
def test_a_check_that_cannot_be_judged_is_refused(claim: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study(claim)
