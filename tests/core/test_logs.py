"""Log lines: what they are about, and that nothing a node sends can look like a line of the log's own."""

from __future__ import annotations

import json
import logging
import re
import sys

from fedloom.core.logs import JsonFormatter, TextFormatter


def record(message: str, **about: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "fedloom.x", "levelno": 30, "levelname": "WARNING", "msg": message, **about})


def test_json_has_run_round_and_node_where_there_are_any() -> None:
    line = json.loads(JsonFormatter().format(record("lost", run="r1", round=3, node="lab-7")))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("at"))
    assert line == {
        "level": "warning", "logger": "fedloom.x", "message": "lost", "run": "r1", "round": 3, "node": "lab-7",
    }  # fmt: skip
    assert not {"run", "round", "node"} & set(json.loads(JsonFormatter().format(record("up"))))


def test_json_is_one_line_whatever_is_said() -> None:
    assert "\n" not in JsonFormatter().format(record('two\nlines "and" \x1b[31mred'))


def test_text_says_what_it_is_about() -> None:
    assert re.fullmatch(
        r"\S+ \S+ WARNING \[run r1, round 3\] lost", TextFormatter().format(record("lost", run="r1", round=3))
    )


def test_text_of_others_is_no_line_of_its_own() -> None:
    first, *others = TextFormatter().format(record("said \x1b[2J\n2026-01-01 00:00:00 INFO all is well")).split("\n")
    assert "\x1b" not in first and others == ["    2026-01-01 00:00:00 INFO all is well"]


def test_a_traceback_stands_below() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        found = record("failed", exc_info=sys.exc_info())
    assert TextFormatter().format(found).endswith("\n    ValueError: broken")
    assert json.loads(JsonFormatter().format(found))["traceback"].endswith("ValueError: broken")
