"""What an update must contain, and how one that does not is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fedloom.client.update_check import check_update
from fedloom.core.errors import BadUpdate
from fedloom.core.messages import Group, GroupKey
from fedloom.core.records import MODEL, Contents, Record, Update

INPUTS = {MODEL: Record({MODEL: {"w": np.zeros((2, 3)), "b": np.zeros(3)}})}


def check(contents: Contents, groups: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Record] = INPUTS) -> None:
    group = Group(key=GroupKey("run", 4, 0, 0), jobs=(), updates=contents)
    check_update(Update(num_examples=1, groups=groups), group, 7, lambda: inputs)


GOOD = {MODEL: {"w": np.ones((2, 3)), "b": np.ones(3)}}


@pytest.mark.parametrize(
    ("contents", "groups"),
    [
        ("model", GOOD),
        ("model", {MODEL: {"b": np.ones(3), "w": np.ones((2, 3))}}),
        ("accumulator", {"anything": {"x": np.ones(1)}}),
        ("subset", {MODEL: {"b": np.ones(3)}}),
        ("subset", {MODEL: {"w": np.ones((2, 3))}, "weights": {"w": np.ones(2)}}),
        ("subset", {}),
        ({MODEL: ("w",)}, {MODEL: {"w": np.ones(99)}}),
        ({"a": ("x",), "b": ()}, {"b": {}, "a": {"x": np.ones(1)}}),
        ({}, {}),
    ],
)
def test_an_update_as_declared_passes(contents: Contents, groups: Mapping[str, Mapping[str, Any]]) -> None:
    check(contents, groups)


@pytest.mark.parametrize(
    ("contents", "groups", "said"),
    [
        ("model", {MODEL: {"w": np.ones((2, 3))}}, "group 'model' of the update lacks 'b'"),
        ("model", {MODEL: {**GOOD[MODEL], "c": np.ones(1)}}, "group 'model' of the update has 'c', which is not"),
        ("model", {**GOOD, "extra": {}}, "has the groups 'extra', 'model', its exchange declares 'model'"),
        ("model", {}, "has the groups none, its exchange declares 'model'"),
        ("model", {MODEL: {**GOOD[MODEL], "w": np.ones((3, 2))}}, r"array 'w' of group 'model' has shape \(3, 2\), the "
         r"global model has \(2, 3\)"),
        ("model", {MODEL: {**GOOD[MODEL], "w": np.ones((2, 3), np.float32)}}, "array 'w' of group 'model' has dtype "
         "float32, the global model has float64"),
        ("model", {MODEL: {**GOOD[MODEL], "b": np.ones(3, np.int64)}}, "array 'b' of group 'model' has dtype int64"),
        ("subset", {MODEL: {"b": np.ones(3, np.float16)}}, r"has dtype float16.*array\.astype\(np\.float64\)"),
        ("subset", {MODEL: {"c": np.ones(1)}}, "has 'c', which the global model does not have"),
        ("subset", {MODEL: {"b": np.ones(4)}}, r"array 'b' of group 'model' has shape \(4,\)"),
        ("subset", {**GOOD, "extra": {}}, "has the groups 'extra', 'model', its exchange declares 'model' and"),
        ({"a": ("x", "y")}, {"a": {"x": np.ones(1), "z": np.ones(1)}}, "group 'a' of the update lacks 'y' and has 'z'"),
        ({}, {"a": {"x": np.ones(1)}}, "has the groups 'a', its exchange declares none"),
        ({"a": tuple("uvwxyz")}, {"a": {}}, "group 'a' of the update lacks 'u', 'v', 'w', 'x' and 2 more"),
    ],
)  # fmt: skip
def test_any_other_names_client_round_group_and_array(
    contents: Contents, groups: Mapping[str, Mapping[str, Any]], said: str
) -> None:
    with pytest.raises(BadUpdate, match=f"client 7, round 4.*{said}"):
        check(contents, groups)


def test_an_exchange_without_a_model_has_to_say_what_its_updates_contain() -> None:
    with pytest.raises(
        BadUpdate,
        match=r"client 7, round 4: .*no such input; it sends 'base'. Declare its updates' content in",
    ):
        check("model", GOOD, {"base": Record()})
