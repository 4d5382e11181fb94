"""The rules in force, as an owner reads them at the node's start."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedloom.client.policy import Policy
from fedloom.client.rules_text import rules_in_force
from fedloom.core.text import clean

USUAL = [
    "messages and tracebacks of failures stay on this node",
    "a model trained here alone may not be evaluated at other sites",
]


def test_the_empty_policy_refuses_everything() -> None:
    assert rules_in_force(Policy()) == ["no workload is allowed: all work is refused", *USUAL]


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        ({"limits": {"runs_per_day": 2}}, "at most 2 runs a day"),
        ({"limits": {"rounds_per_day": 5000}}, "at most 5,000 rounds a day"),
        ({"limits": {"bytes_per_day": 10}}, "at most 10 bytes a day"),
        ({"limits": {"hours": ["22:00-06:00"]}}, "works only at 22:00-06:00, local time"),
        ({"limits": {"hook": ["x"]}}, "works only if the owner's hook approves"),
        ({"limits": {"min_examples": 5}}, "a client needs at least 5 examples"),
        ({"limits": {"min_cohort": 3}}, "a run must state at least 3 clients a round"),
        ({"limits": {"alone": False}}, "no exchange without other clients, but for the initial model and the "
                                       "description of the data"),
        ({"submitters": []}, "runs are done for nobody only"),
        ({"roles": ["admin"]}, "runs are done for the roles admin only"),
        ({"approval": {"command": ["x"]}}, "every run is approved by the owner's command first"),
        ({"filters": {"noise": 0.1}}, "each update passes the node's filters before it leaves"),
        ({"withhold": {"sizes": "bucketed"}}, "sizes leave rounded up to a power of two"),
        ({"withhold": {"sizes": "withheld", "digests": True}}, "withheld: digests, sizes"),
        ({"code": ["lab.net"]}, "code lab.net is allowed"),
        ({"tracebacks": True}, "messages and tracebacks of failures leave this node"),
        ({"share_local_model": True}, "a model trained here alone may be evaluated at other sites"),
    ],
)  # fmt: skip
def test_each_rule_is_one_sentence(policy: dict[str, object], rule: str) -> None:
    rules = rules_in_force(Policy.model_validate(policy))
    assert rule in rules and all(clean(each) == each for each in rules)


def test_a_workload_with_its_data_and_submitters(tmp_path: Path) -> None:
    allowed = {"data": str(tmp_path), "columns": ["age"], "submitters": ["ann"]}
    rules = rules_in_force(Policy.model_validate({"workloads": {"w": allowed}}))
    assert rules[:2] == [
        f"workload w is allowed, with $DATA = {tmp_path}, columns age",
        "runs of w are done for ann only",
    ]
