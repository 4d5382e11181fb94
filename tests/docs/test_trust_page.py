"""The page about trust lists everything a node sends: a field the wire gains must be told there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fedloom.client.agent import _facts
from fedloom.proto.v1 import enroll_pb2, fleet_pb2

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "trust.md").read_text(encoding="utf-8")
TOLD: dict[Any, dict[str, str]] = {
    fleet_pb2.RegisterRequest: {
        "protocol": "`protocol`", "node": "`node`", "session": "`session`", "facts_json": "`facts.host`",
    },
    fleet_pb2.Heartbeat: {"held": "keys of the groups it holds", "missing_runs": "ids of runs it was not told"},
    fleet_pb2.Refusal: {
        "key": "| refusal | the group's key", "reason": "the reason in words", "retry_s": "when asking again may help",
        "kind": "which part of the policy is against it",
    },
    fleet_pb2.Report: {
        "client": "the client's number", "num_examples": "examples", "seconds": "seconds",
        "metrics": "metrics as (sum, weight)", "info_json": "`info`", "bytes_down": "bytes", "bytes_up": "bytes",
        "params_down": "parameters read and sent", "params_up": "parameters read and sent",
        "num_trained": "whether it trained", "num_retrained": "whether it trained again because",
    },
    fleet_pb2.Failure: {
        "client": "| failure | the client's number", "stage": "stage", "error": "the exception's type",
        "message": "Its message and traceback only with `tracebacks = true`",
        "traceback": "Its message and traceback only with `tracebacks = true`", "seconds": "seconds",
        "bytes_down": "seconds; bytes read",
    },
    fleet_pb2.GroupResult: {
        "key": "| result | the group's key", "total": "the sum of its clients' updates",
        "reports": "| report, one per client", "failures": "| failure |", "states": "| state |", "busy_s": "seconds",
        "notices": "notices: sentences for the user of the run",
    },
    fleet_pb2.Goodbye: {"reason": "| goodbye |", "come_back": "| goodbye |"},
    fleet_pb2.UploadRequest: {"sha256": "digest", "size": "| upload | size", "offset": "offset"},
    fleet_pb2.DownloadRequest: {"sha256": "| download | digest", "offset": "offset"},
    enroll_pb2.JoinRequest: {
        "protocol": "version", "secret": "the token's secret, once", "csr_pem": "a certificate request",
    },
    enroll_pb2.RenewRequest: {"csr_pem": "a certificate request with the new public key"},
}  # fmt: skip


@pytest.mark.parametrize("message", TOLD, ids=lambda message: message.__name__)
def test_every_field_is_told(message: Any) -> None:
    assert set(message.DESCRIPTOR.fields_by_name) == set(TOLD[message]), "a new field: tell it in trust.md, then here"
    for phrase in TOLD[message].values():
        assert phrase in PAGE


def test_every_message_of_the_stream_is_told() -> None:
    bodies = {field.message_type.name for field in fleet_pb2.FromAgent.DESCRIPTOR.fields if field.message_type}
    assert bodies <= {message.__name__ for message in TOLD}


def test_every_fact_is_told() -> None:
    for fact in _facts():
        assert f"`facts.{fact}`" in PAGE


def test_the_tests_that_the_table_names_are_there() -> None:
    table = PAGE.partition("## What stops whom")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15 and all(len(row) == 4 for row in rows)
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row[3])
        assert named, row
        assert all((ROOT / file).is_file() for file in named), row
