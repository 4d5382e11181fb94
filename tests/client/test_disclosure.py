"""What a node reads and tells: columns and class names by its policy, floors, nothing of its own identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from policies import guard

from fedloom.client.disclosure import FEW, MAX_CLASSES, MAX_NAME, MIN_EXAMPLES, digest_of_class, disclosed
from fedloom.client.guard import Guard
from fedloom.client.policy import Policy
from fedloom.client.usage import Usage
from fedloom.core.config import plugin_schema
from fedloom.core.errors import PolicyRefused
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.setting_types import default_columns


def info(*names: str, examples: int = 10) -> WorkloadInfo:
    return WorkloadInfo(data={"name": "x"}, label_counts=[[examples] * len(names)], label_names=names)


class TestClasses:
    def test_names_that_the_policy_lists_are_disclosed_others_as_digests(self) -> None:
        found = disclosed(info("cat", "Patient 7 of 12 Mill Lane"), ("cat", "dog"), "run-1")
        assert found.label_names == ["cat", digest_of_class("Patient 7 of 12 Mill Lane", "run-1")]
        assert "Mill" not in str(found) and found.label_counts == [[10, 10]]

    def test_equal_names_have_equal_digests_in_a_run_and_others_in_another(self) -> None:
        here, there = disclosed(info("a", "b"), (), "run-1"), disclosed(info("b", "c"), (), "run-1")
        assert here.label_names[1] == there.label_names[0] != here.label_names[0]
        assert disclosed(info("a", "b"), (), "run-2").label_names[1] != here.label_names[1]

    def test_nothing_is_disclosed_of_a_class_with_few_examples(self) -> None:
        assert disclosed(info("a", "b", examples=MIN_EXAMPLES - 1), ("a",), "r").label_names == [FEW, FEW]
        assert disclosed(info("a", "b", examples=MIN_EXAMPLES), ("a",), "r").label_names[0] == "a"

    def test_examples_of_all_clients_count_together(self) -> None:
        several = WorkloadInfo(data={}, label_counts=[[3, 1], [2, 1]], label_names=("a", "b"))
        assert disclosed(several, ("a", "b"), "r").label_names == ["a", FEW]

    def test_a_long_name_is_never_disclosed(self) -> None:
        name = "x" * (MAX_NAME + 1)
        assert disclosed(info(name), (name,), "r").label_names == [digest_of_class(name, "r")]

    def test_a_column_with_many_values_is_none_of_classes(self) -> None:
        assert len(disclosed(info(*map(str, range(MAX_CLASSES))), (), "r").label_names) == MAX_CLASSES
        with pytest.raises(PolicyRefused, match="at most 1000"):
            disclosed(info(*map(str, range(MAX_CLASSES + 1))), (), "r")


def experiment(workload: Any, **values: Any) -> dict[str, Any]:
    return {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": workload, **values}


def table(data: Path, **columns: str) -> dict[str, Any]:
    return {"name": "text_classification", "data": {"source": "csv", "file": str(data / "x.csv"), **columns}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_text("text,label,notes\n", encoding="utf-8")
    return tmp_path / "data"


def with_columns(data: Path, *columns: str, **limits: Any) -> Guard:
    named = {"columns": columns} if columns else {}
    return guard(data.parent, workloads={"text_classification": {"data": str(data), **named}}, limits=limits)


class TestColumns:
    def test_those_the_workload_reads_by_default_may_be_read(self, data: Path) -> None:
        with_columns(data).admit_experiment(experiment(table(data)))
        with_columns(data).admit_experiment(experiment(table(data, text_column="text", label_column="label")))

    @pytest.mark.parametrize("field", ["text_column", "label_column", "group_column"])
    def test_no_other_is_read_unless_the_policy_names_it(self, data: Path, field: str) -> None:
        asked = experiment(table(data, **{field: "notes"}))
        with pytest.raises(PolicyRefused, match=rf"data\.{field} = 'notes' is no column") as caught:
            with_columns(data).admit_experiment(asked)
        assert caught.value.kind == "data"
        with_columns(data, "text", "label", "notes").admit_experiment(asked)

    def test_a_default_that_the_policy_does_not_name_is_refused(self, data: Path) -> None:
        with pytest.raises(PolicyRefused, match=r"label_column = 'label' is no column"):
            with_columns(data, "text").admit_experiment(experiment(table(data)))

    def test_defaults_are_those_of_the_settings(self) -> None:
        assert default_columns(plugin_schema("workloads", "text_classification")) == {"text", "label"}
        assert default_columns(plugin_schema("workloads", "image_classification")) >= {"image", "label", "x_train"}


class TestFloors:
    def test_of_the_cohort(self, data: Path) -> None:
        own = with_columns(data, min_cohort=5)
        own.admit_experiment(experiment(table(data), clients=100, cohort=5))
        own.admit_experiment(experiment(table(data), clients=5))
        for sizes in ({"clients": 1438, "cohort": 1}, {"clients": 4}, {}, {"cohort": "5"}):
            with pytest.raises(PolicyRefused, match="expected at least 5"):
                own.admit_experiment(experiment(table(data), **sizes))

    def test_of_examples(self, data: Path) -> None:
        own = with_columns(data, min_examples=8)
        own.admit_examples(3, 8)
        with pytest.raises(PolicyRefused, match="client 3 has fewer examples than the 8"):
            own.admit_examples(3, 7)


@pytest.mark.parametrize("asked", ["$DATA", "$DATA/node", "$DATA/node/key.pem", "$DATA/link", "$DATA/policy.toml"])
def test_the_nodes_own_files_are_no_data(tmp_path: Path, asked: str) -> None:
    """Not even where its owner has put them below the data folder, or the data folder around them."""
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "key.pem").write_text("secret", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "node")
    (tmp_path / "policy.toml").write_text("", encoding="utf-8")
    (tmp_path / "other").mkdir()
    policy = Policy.model_validate({"workloads": {"causal_lm": {"data": str(tmp_path)}}})
    own = Guard(policy, Usage(tmp_path / "usage"), private=(tmp_path / "node", tmp_path / "policy.toml"))
    with pytest.raises(PolicyRefused, match="are no data"):
        own.admit_experiment(experiment({"name": "causal_lm", "data": {"path": asked}}))
    own.admit_experiment(experiment({"name": "causal_lm", "data": {"path": "$DATA/other"}}))
