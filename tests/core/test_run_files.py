from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fedloom.core import run_files
from fedloom.core.errors import UsageError
from fedloom.core.protocols import WorkloadInfo


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, b"new\n"),
        (b"", b"new\n"),
        (b"one\n", b"one\nnew\n"),
        (b"torn", b"new\n"),
        (b"one\ntw\xc3", b"one\nnew\n"),
    ],
)
def test_a_line_takes_the_place_of_a_torn_one(tmp_path: Path, before: bytes | None, after: bytes) -> None:
    path = tmp_path / "lines"
    if before is not None:
        path.write_bytes(before)
    run_files.append_line(path, "new")
    assert path.read_bytes() == after


def test_lines_are_utf_8(tmp_path: Path) -> None:
    run_files.append_line(tmp_path / run_files.EVENTS, json.dumps({"event": "Größe"}, ensure_ascii=False))
    assert run_files.read_events(tmp_path) == [{"event": "Größe"}]


def test_an_empty_folder_has_nothing(tmp_path: Path) -> None:
    for read in (run_files.read_rounds, run_files.read_choices, run_files.read_events):
        assert read(tmp_path) == []
    assert run_files.read_workload(tmp_path) is None and run_files.read_summary(tmp_path) is None
    assert run_files.read_run_id(tmp_path) == tmp_path.name


def test_a_workloads_description_survives_json_field_by_field() -> None:
    info = WorkloadInfo(
        data={"name": "x", "sha256": None, "nested": {"n": [1, 2.5]}},
        client_sizes=[3, 4],
        label_counts=[[1, 2], [4, 0]],
        label_names=["a", "b"],
        watch={"skipped": "told"},
        exponentials={"perplexity": "loss"},
    )
    default = WorkloadInfo(data={})
    assert all(getattr(info, f.name) != getattr(default, f.name) for f in dataclasses.fields(info)), (
        "a field is missing"
    )
    assert run_files.workload_of(json.loads(json.dumps(run_files.workload_values(info)))) == info


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "data: Field required"),
        ({"data": {}, "client_sizes": ["many"]}, r"client_sizes\.0: "),
        ({"data": {}, "Client_sizes": []}, "unknown key 'Client_sizes'"),
    ],
)
def test_a_workloads_description_of_another_form_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run_files.workload_of(values)


def test_a_damaged_run_id_is_named(tmp_path: Path) -> None:
    (tmp_path / run_files.RUN).write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"run\.json: not JSON"):
        run_files.read_run_id(tmp_path)
