"""Paths of the server in texts for users: shortened to their last part, whatever they are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedloom.server.access.public_text import public_json, public_value, without_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot write to /srv/state/runs/x: full", "cannot write to …/x: full"),
        ("'/srv/a.py' (line 3)", "'…/a.py' (line 3)"),
        ('File "/opt/x/site-packages/y.py", line 3', 'File "…/y.py", line 3'),
        ("(/srv/a, /srv/b).", "(…/a, …/b)."),
        ("key=/srv/a;rest", "key=…/a;rest"),
        ("at /srv/a.", "at …/a."),
        ("one\n/srv/a/b\ntwo", "one\n…/b\ntwo"),
        ("/tmp", "…/tmp"),
        ("unix:/run/x.sock", "unix:…/x.sock"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("1/2 of a/b, ./x/y, ../x, ~/x", "1/2 of a/b, ./x/y, ../x, ~/x"),
        ("</div> and <br/>", "</div> and <br/>"),
        ("loss / accuracy", "loss / accuracy"),
        ("no message of /fedloom.proto.v1.Control/Submit", "no message of /fedloom.proto.v1.Control/Submit"),
        ("", ""),
    ],
)
def test_absolute_paths_are_shortened_and_nothing_else(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_what_the_reader_wrote_is_left_as_it_is() -> None:
    said = "workload = '/home/ann/x.py' is not installed; /srv/state/x is full"
    assert without_paths(said, '{"workload": "/home/ann/x.py"}') == said.replace("/srv/state/x", "…/x")


def test_folders_with_spaces_are_shortened_as_a_whole(tmp_path: Path) -> None:
    state = tmp_path / "my own state"
    (state / "runs").mkdir(parents=True)
    for place in (state, state / "runs", state / "runs" / "new one.toml", state / "x" / "no" / "y"):
        text = without_paths(f"cannot write to {place}: full. Free space in {state}")
        assert text == f"cannot write to …/{place.name}: full. Free space in …/my own state"


def test_json_is_searched_to_its_leaves_and_unchanged_where_there_is_nothing() -> None:
    event = {"event": "RunFinished", "summary": {"run_dir": "relative/x", "error": "a\n/srv/x/y", "metrics": [1.5]}}
    shown = json.loads(public_json(json.dumps(event).encode()))
    assert shown == {"event": "RunFinished", "summary": {"run_dir": None, "error": "a\n…/y", "metrics": [1.5]}}
    same = b'{"a":  "b/c", "x": 1.50}\n'
    assert public_json(same) is same, "not even its spaces change"
    assert public_json(b"torn { /srv/x/y\n") == "torn { …/y\n".encode()
    assert public_value(("/srv/x/y", 3, None, True)) == ["…/y", 3, None, True]
