"""The page on trust: the list of what a node sends is the wire's, and the tests it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedloom.cli.reference import trust
from fedloom.cli.reference.__main__ import stale
from fedloom.client.facts import WORDS, facts
from fedloom.proto.v1 import enroll_pb2, fleet_pb2, leaving
from fedloom.proto.v1.leaving import calls, sent_fields
from fedloom.server.access.gate import ALLOWED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "trust.md").read_text(encoding="utf-8")


def test_the_list_of_what_leaves_is_as_the_code_has_it() -> None:
    assert "../explanation/trust.md" not in stale(ROOT / "docs" / "reference"), "run `make docs`"


def test_every_field_that_a_node_sends_is_listed() -> None:
    """The oracle is the wire itself: what can be inside a batch of an agent, and the requests of the other calls."""
    fields = {(sent.message, sent.field) for sent in sent_fields()}
    for message in (
        *(fleet_pb2.RegisterRequest, fleet_pb2.FromAgentBatch, fleet_pb2.FromAgent, fleet_pb2.GroupResult),
        *(fleet_pb2.Report, fleet_pb2.Metric, fleet_pb2.Failure, fleet_pb2.Payload, fleet_pb2.Heartbeat),
        *(fleet_pb2.Refusal, fleet_pb2.Verdict, fleet_pb2.Goodbye, fleet_pb2.UploadRequest, fleet_pb2.DownloadRequest),
        *(enroll_pb2.JoinRequest, enroll_pb2.RenewRequest),
    ):
        for name in message.DESCRIPTOR.fields_by_name:
            assert (message.DESCRIPTOR.name, name) in fields and f"| `{name}` |" in PAGE
    assert {name for name, _ in calls()} >= {"Fleet.Register", "Fleet.Work", "Fleet.Upload", "Enroll.Join"}


def test_every_call_that_a_node_may_make_is_listed() -> None:
    allowed = {call.replace("/", ".") for call, roles in ALLOWED.items() if "node" in roles}
    assert len(allowed) > 5 and allowed <= {name for name, _ in calls()}


@pytest.mark.parametrize("field", ["metrics", "message"])
def test_a_field_without_words_is_an_error(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "Report" if field == "metrics" else "Failure"
    less = {name: words for name, words in leaving._WORDS[message].items() if name != field}
    monkeypatch.setattr(leaving, "_WORDS", {**leaving._WORDS, message: less})
    with pytest.raises(LookupError, match=f"nodes send {message}.{field}: say what it is"):
        trust.render()


def test_words_of_a_field_that_is_gone_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "_WORDS", {**leaving._WORDS, "Report": {**leaving._WORDS["Report"], "gone": "x"}})
    with pytest.raises(LookupError, match="gone"):
        trust.render()


def test_every_fact_is_listed() -> None:
    sent = facts("word", ["site"])
    assert sent.keys() == WORDS.keys() and sent["instance"] == "word"
    for fact in sent:
        assert f"| `facts.{fact}` |" in PAGE


def test_the_tests_that_the_table_names_are_there() -> None:
    table = PAGE.partition("## What stops whom")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15 and all(len(row) == 4 for row in rows)
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row[3])
        assert named, row
        assert all((ROOT / file).is_file() for file in named), row


ATTACKS = (ROOT / "docs" / "explanation" / "attacks.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in ATTACKS.splitlines()
    if re.match(r"\| [A-Z]\d", line)
]
"""Of every attack its id, what it is, and the tests that try it or the reason why it is accepted."""
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`((?: \([^)]*\))?)")


def _is_slow(source: str, name: str) -> bool:
    """Whether a test is marked so, by itself or with its module."""
    before = re.search(rf"((?:^@.*\n(?:^[ \)].*\n)*)*)^def {name}\b", source, re.MULTILINE)
    own = before is not None and re.search(r"^@pytest\.mark\.slow", before[1], re.MULTILINE) is not None
    return own or re.search(r"^pytestmark = .*pytest\.mark\.slow", source, re.MULTILINE) is not None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_attack_has_a_test_that_is_there_or_is_accepted(row: list[str]) -> None:
    assert len(row) == 3, row
    named = _TEST.findall(row[2])
    for file, name, marks in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(?:def|class) {name}\b", source, re.MULTILINE), (file, name)
        if name.startswith("test_"):
            assert _is_slow(source, name) == ("*slow*" in marks), f"{file}::{name}: say whether it is slow"
    accepted = "accepted" in row[2]
    assert accepted or named
    assert accepted == (f"- **{row[0]}** " in PAGE), "what is accepted is on the page on trust, and nothing else"


def test_attacks_have_ids_of_their_own_and_none_is_left_out() -> None:
    ids = [row[0] for row in ROWS]
    assert len(ids) == len({*ids}) > 70
    numbers = {each.partition(".")[0] for each in ids}
    assert {f"F{number}" for number in range(1, 21)} | {f"W{number}" for number in range(1, 8)} <= numbers
    assert {*re.findall(r"^- \*\*([A-Z][\d.]+)\*\* ", PAGE, re.MULTILINE)} <= {*ids}


def test_no_page_puts_a_token_on_a_command_line() -> None:
    """Other users of the machine see it there: pages, scripts and examples read it from a file."""
    files = [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*")]
    files += [*(ROOT / "examples").rglob("*"), *(ROOT / "src").rglob("*.md"), ROOT / "docker-compose.yml"]
    for file in files:
        if file.is_file() and file.suffix not in (".png", ".pyc", ".npz", ".safetensors"):
            text = file.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"fedloom join (?!-(?: |$|`)|\[OPTIONS\])[\w\"'$<]", text, re.MULTILINE), file
