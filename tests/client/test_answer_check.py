"""What a client returns is checked where it is produced: what cannot be sent is that client's failure, and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedloom.client.answer_check import check_answer, check_report
from fedloom.core.errors import BadFrame, BadUpdate
from fedloom.core.messages import MAX_INFO, MAX_METRICS, GroupKey, GroupResult
from fedloom.core.records import ClientReport, Mean, Record, Update
from fedloom.proto.v1 import codec

SCALARS: dict[str, Any] = {"b": np.float32(1.0), "loss": np.float32(1.5), "text": "a", "list": [1]}
"""What a workload may return against the types."""
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
BROAD = np.broadcast_to(np.float32(1.0), (10**10,))
"""Four bytes of memory, 40 GB to be sent."""
GOOD = Update(
    num_examples=3,
    groups={"model": {"w": np.ones(2, np.float32), "b": SCALARS["b"]}},
    metrics={"loss": Mean(SCALARS["loss"], 2)},
    info={"a": {"b": [1, None]}},
    state=Record({"s": {"x": np.zeros(1)}}),
)


@pytest.mark.parametrize("count", [0, np.int64(7), np.array(4), torch.tensor(5)])
def test_a_count_is_a_plain_integer_afterwards(count: Any) -> None:
    checked = check_answer(replace(GOOD, num_examples=count), "train")
    assert type(checked.num_examples) is int and checked.num_examples == int(count)


def test_metrics_are_plain_floats_afterwards_and_arrays_stay() -> None:
    checked = check_answer(GOOD, "train")
    assert checked.metrics == {"loss": Mean(1.5, 2.0)} and type(checked.metrics["loss"].sum) is float
    assert checked.groups is GOOD.groups and checked.state is GOOD.state


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_examples": -5}, "num_examples of 'train': expected an integer of at least 0, got -5"),
        ({"num_examples": 2.0}, r"got 2\.0 \(float\)"),
        ({"num_examples": True}, "got True"),
        ({"num_examples": None}, "got None"),
        ({"num_examples": 2**64}, "got 18446744073709551616"),
        ({"num_examples": "3"}, r"got '3' \(str\)"),
        ({"metrics": {5: Mean(1.0, 1.0)}}, r"expected names of 1 to 256 printable characters, got 5 \(int\)"),
        ({"metrics": {"": Mean(1.0, 1.0)}}, "got ''"),
        ({"metrics": {"a\nb": Mean(1.0, 1.0)}}, "printable"),
        ({"metrics": {"caf\udce9": Mean(1.0, 1.0)}}, "printable"),
        ({"metrics": {"x" * 257: Mean(1.0, 1.0)}}, "printable"),
        ({"metrics": {"loss": 0.5}}, r"metric 'loss' of 'train': expected Mean\(sum, weight\), got 0\.5"),
        ({"metrics": {"loss": (1.0, 2.0)}}, "expected Mean"),
        ({"metrics": {"loss": Mean(SCALARS["text"], 1.0)}}, "expected two numbers"),
        ({"metrics": {"loss": Mean(1.0, -1.0)}}, "expected a finite weight of at least 0"),
        ({"metrics": {"loss": Mean(1.0, float("nan"))}}, "expected a finite weight"),
        ({"metrics": {"loss": Mean(10**400, 1.0)}}, "expected two numbers"),
        ({"metrics": [("loss", 1.0)]}, "expected a dict of Mean by name"),
        ({"groups": [np.ones(1)]}, "expected a dict of arrays by group"),
        ({"groups": {"model": [np.ones(1)]}}, "group 'model' of 'train': expected a dict of arrays by name"),
        ({"groups": {"model": {"w": [1.0, 2.0]}}}, "array 'w' of group 'model' of 'train': expected a NumPy array"),
        ({"groups": {"model": {"w": torch.ones(1)}}}, r"\(\.detach\(\)\.cpu\(\)\.numpy\(\)\)"),
        ({"groups": {"model": {3: np.ones(1)}}}, "expected a name as text, got 3"),
        ({"groups": {"model": {"caf\udce9": np.ones(1)}}}, "is not UTF-8"),
        ({"info": {1: 2}}, "info of 'train': expected keys as text, got 1"),
        ({"info": {"a": {(1, 2): 3}}}, "expected keys as text"),
        ({"info": {"a": [{1: 2}]}}, "expected keys as text, got 1"),
        ({"info": {"a": ["\ud800"]}}, r"'a' in info of 'train': the text '.ud800' \(str\) is not UTF-8"),
        ({"info": {"caf\udce9": 1}}, "a key in info of 'train': the text .* is not UTF-8"),
        ({"info": {"a": {"caf\udce9": 1}}}, "a key in 'a' in info of 'train': the text .* is not UTF-8"),
        ({"info": {"a": {1, 2}}}, r"expected JSON values .*, got \{1, 2\} \(set\)"),
        ({"info": {"a": np.float32(1.5)}}, r"Convert NumPy values with \.item\(\)"),
        ({"info": {"a": ENDLESS}}, "'a' in info of 'train': expected at most 100 nested lists and dicts"),
        ({"state": Record({}, {"a": {1: 2}})}, "'a' in info of 'train' state: expected keys as text, got 1"),
        (
            {"state": Record({"s": {"x": BROAD}})},
            "state of 'train': expected at most 17179869184 bytes, got 40",
        ),
        ({"groups": {"model": {"w": BROAD}}}, "arrays of 'train': expected at most 17179869184 bytes"),
        ({"groups": {"model": {"w": np.ma.masked_array([1.0], [True])}}}, "got a masked one"),
        ({"info": None}, "expected a dict of JSON values, got None"),
        ({"state": {"x": 1}}, "state of 'train': expected a Record"),
        ({"state": Record({"s": {"x": SCALARS["list"]}})}, "expected a NumPy array"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name_and_value(changed: Mapping[str, Any], said: str) -> None:
    with pytest.raises(BadUpdate, match=said):
        check_answer(replace(GOOD, **changed), "train")


def test_a_state_that_no_frame_can_hold_is_refused() -> None:
    with pytest.raises(BadFrame, match="dtype object, which cannot be sent"):
        check_answer(replace(GOOD, state=Record({"s": {"x": np.array([None])}})), "train")


@pytest.mark.parametrize("made", [None, {"model": {}}, 3.0, Update])
def test_what_is_no_update_is_refused(made: object) -> None:
    with pytest.raises(BadUpdate, match=r"'train' returned .* expected a fedloom\.core\.records\.Update"):
        check_answer(made, "train")


def test_what_passes_crosses_the_wire() -> None:
    update = check_answer(GOOD, "train")
    report = ClientReport(
        client=1, num_examples=update.num_examples, seconds=0.0, metrics=update.metrics, info=update.info
    )
    wire = codec.from_agent_message(GroupResult(key=GroupKey("r", 1, 0, 0), total=None, reports=(report,)))
    read = codec.read_from_agent(wire, "n")
    assert isinstance(read, GroupResult) and read.reports == (report,)


def test_a_report_that_no_message_has_room_for_is_refused() -> None:
    full = {f"m{index}": Mean(1.0, 1.0) for index in range(MAX_METRICS)}
    report = ClientReport(client=1, num_examples=1, seconds=0.0, metrics=full)
    assert check_report(report, MAX_INFO, "train") is report
    with pytest.raises(BadUpdate, match="info of 'train': expected at most 1048576 characters as JSON, got 1048577"):
        check_report(report, MAX_INFO + 1, "train")
    with pytest.raises(BadUpdate, match="metrics of 'train': expected at most 256, got 257"):
        check_report(replace(report, metrics={**full, "more": Mean(1.0, 1.0)}), 0, "train")
