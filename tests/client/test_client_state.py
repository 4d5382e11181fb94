"""A client's stored state: the workload's part and each rule's in one record, and back."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.client.client_state import WORKLOAD, compose, rule_parts, split
from fedloom.core import frames
from fedloom.core.errors import BadFrame
from fedloom.core.records import Record


def test_parts_come_back_as_they_were_also_from_a_frame() -> None:
    parts = {
        WORKLOAD: Record({"own": {"w": np.arange(3.0)}, "0": {"v": np.ones(2, np.int8)}}, {"seen": 4}),
        "rule a": Record({"own": {"w": np.zeros((2, 2), np.float32)}}),
        "rule a/b 2": Record({}, {"nested": {"list": [1, None]}}),
    }
    stored = compose(parts)
    assert stored is not None
    for back in (split(stored), split(frames.decode(frames.encode(stored)))):
        assert list(back) == list(parts)
        for name, part in parts.items():
            assert back[name].info == part.info and list(back[name].groups) == list(part.groups)
            for (_, _, found), (_, _, want) in zip(back[name].items(), part.items(), strict=True):
                assert found.dtype == want.dtype
                np.testing.assert_array_equal(found, want)


def test_nothing_is_stored_of_nothing() -> None:
    assert compose({}) is None and split(None) == {}


def test_rules_are_named_and_a_repeated_one_is_counted() -> None:
    assert rule_parts(("clip", "noise", "clip")) == ["rule clip", "rule noise", "rule clip 2"]
    assert rule_parts(()) == []


@pytest.mark.parametrize(
    "info", [{"seen": 1}, {"parts": 3}, {"parts": [{"name": "a", "groups": {"g": "7"}, "info": {}}]}]
)
def test_another_versions_record_is_refused(info: dict[str, object]) -> None:
    with pytest.raises(BadFrame, match="expected a record with a list of parts, found one with info"):
        split(Record({"own": {}}, info))
