"""Columns of a table that a node reads without their being named: none, where its policy says which may be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from policies import guard

from fedloom.core import registry
from fedloom.core.config import plugin_schema
from fedloom.core.errors import PolicyRefused
from fedloom.core.setting_types import ALL_OTHERS, default_columns

SOURCES = ({"source": "csv", "file": "$DATA/t.csv"}, {"source": "parquet", "file": "$DATA/t.parquet"},
           {"source": "huggingface", "dataset": "$DATA/t"})  # fmt: skip


def experiment(data: dict[str, Any]) -> dict[str, Any]:
    workload = {"name": "torch", "model": "mlp", "data": data}
    return {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": workload}


@pytest.mark.parametrize("data", SOURCES, ids=lambda data: data["source"])
def test_all_other_columns_are_those_the_policy_names(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    by_join = tuple(sorted(default_columns(plugin_schema("workloads", "torch"))))
    for columns in (None, (), ("label", "age"), by_join):
        own = guard(tmp_path, workloads={"torch": {"data": str(tmp_path), "columns": columns}})
        none: tuple[dict[str, Any], ...] = ({}, {"features": []})
        for features in none:
            with pytest.raises(PolicyRefused, match=r"data\.\S*features names no columns|no column that the node"):
                own.admit_experiment(experiment({**data, **features}))
    own = guard(tmp_path, workloads={"torch": {"data": str(tmp_path), "columns": ("label", "age")}})
    passed = own.admit_experiment(experiment({**data, "features": ["age"]}))
    assert passed["workload"]["data"]["features"] == ["age"]
    with pytest.raises(PolicyRefused, match="'income' is no column"):
        own.admit_experiment(experiment({**data, "features": ["age", "income"]}))


def test_every_list_of_columns_that_may_be_empty_says_what_that_means() -> None:
    """A new field of columns without names would read what no policy names."""
    seen: set[object] = set()

    def walk(schema: Any) -> None:
        from typing import get_args

        from pydantic import BaseModel

        from fedloom.core.setting_types import SettingKind

        if isinstance(schema, type) and issubclass(schema, BaseModel):
            if schema in seen:
                return
            seen.add(schema)
            for name, field in schema.model_fields.items():
                if SettingKind.COLUMN in {mark for each in get_args(field.annotation) for mark in get_args(each)[1:]}:
                    optional = field.default == ()
                    assert not optional or ALL_OTHERS in field.metadata, f"{schema.__module__}.{schema.__name__}.{name}"
                walk(field.annotation)
        for each in get_args(schema):
            walk(each)

    for name in registry.names("workloads"):
        walk(plugin_schema("workloads", name))
    assert len(seen) > 20
