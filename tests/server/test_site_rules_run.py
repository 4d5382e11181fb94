"""Rules of really joined nodes, each a process with its own policy: every message of a run, and work they refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import patients
import pytest
from google.protobuf.message import Message
from members import Members, members

from fedloom.core.config import Experiment
from fedloom.core.events import Event, NodeRefused
from fedloom.proto.v1 import codec
from fedloom.proto.v1.leaving import sent_fields
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.testing.fleet import EventLog, fleet_access, wait_until

WORKLOAD = Path(patients.__file__)


class Site:
    """A joined node in a process of its own, with data of its own."""

    def __init__(self, fleet: Members, name: str, policy: str) -> None:
        self.name, self.data = name, fleet.folder / f"data-{name}"
        self.data.mkdir()
        self.secrets = [*patients.write_table(self.data), str(self.data), str(fleet.folder)]
        self._fleet, self._folder = fleet, fleet.joined(name).folder
        allowed = f'[workloads."{WORKLOAD}"]\ndata = "{self.data}"\n'
        (self._folder / "policy.toml").write_text(f"{policy}\n{allowed}", encoding="utf-8")
        self.program: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        call = [sys.executable, "-m", "fedloom", "client", "--identity", str(self._folder)]
        log = (self._fleet.folder / f"log-{self.name}").open("ab")
        self.program = subprocess.Popen(call, stdout=log, stderr=log, cwd=self._fleet.folder, env=dict(os.environ))
        coordinator = self._fleet.server.coordinator

        def is_here() -> bool:
            node = coordinator.nodes().get(self.name)
            return node is not None and node.online and not node.fresh

        wait_until(is_here, 60, f"node {self.name}")

    def stop(self) -> None:
        if self.program is not None:
            self.program.terminate()
            self.program.wait(60)
            wait_until(lambda: not self._fleet.server.coordinator.nodes()[self.name].online, 60)


class _StopsWhenRefused(EventLog):
    """Ends a run that a node refuses: it would wait for another node, or for the node's next day."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def write(self, event: Event) -> None:
        super().write(event)
        if isinstance(event, NodeRefused):
            self._stop.set()


class Place:
    """A server that takes down what nodes send, and its sites."""

    def __init__(self, fleet: Members, stack: contextlib.ExitStack) -> None:
        self.fleet, self._stack = fleet, stack
        self.messages: list[Message] = []

    def site(self, name: str, policy: str = "") -> Site:
        made = Site(self.fleet, name, policy)
        self._stack.callback(made.stop)
        return made

    def run(self, run_id: str = "run", **values: Any) -> tuple[Outcome, list[NodeRefused]]:
        stop = threading.Event()
        log = _StopsWhenRefused(stop)
        table = {"name": str(WORKLOAD), **values.pop("workload", {})}
        base: dict[str, Any] = {"rounds": 2, "clients": 2, "strategy": "fedavg", "evaluation": {"every": 0}}
        experiment = Experiment.parse({**base, **values, "workload": table})
        access = fleet_access(self.fleet.server.coordinator, patience_s=20)
        access = dataclasses.replace(access, submitter=("ann", "user"), code_names=True)
        outcome = run_session(experiment, MemoryRunStore(run_id), access, [log], stop=stop)
        return outcome, log.of(NodeRefused)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        place = Place(stack.enter_context(members(tmp_path)), stack)
        for name in ("read_from_agent", "read_hello"):
            read = getattr(codec, name)

            def noting(message: Message, *rest: object, _read: Any = read) -> object:
                place.messages.append(message)
                return _read(message, *rest)

            monkeypatch.setattr(codec, name, noting)
        yield place


def walked(message: Message) -> Iterator[tuple[str, str, object]]:
    """Every field of a message that is set, those inside it included: its message, its name, its value."""
    for field, value in message.ListFields():
        yield message.DESCRIPTOR.name, field.name, value
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        inner: Sequence[Any] = [value[key] for key in value] if entry else value if field.is_repeated else [value]
        for each in inner:
            if isinstance(each, Message):
                yield from walked(each)


def sent(place: Place) -> list[tuple[str, str, object]]:
    return [found for message in place.messages for found in walked(message)]


def described(place: Place) -> dict[str, Any]:
    """What the node that made the initial model said of the data."""
    totals = [value for name, field, value in sent(place) if (name, field) == ("GroupResult", "total")]
    for total in totals:
        inline: bytes = getattr(total, "inline")  # noqa: B009
        head = json.loads(inline[8 : 8 + int.from_bytes(inline[:8], "little")])
        text = head.get("__metadata__", {})
        for value in text.values():
            found = json.loads(value) if value[:1] in "{[" else None
            if isinstance(found, dict) and "workload" in json.dumps(found):
                return _workload(found)
    raise AssertionError("no description was sent")


def _workload(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        if "workload" in value and isinstance(value["workload"], dict):
            return dict(value["workload"])
        for inner in value.values():
            with contextlib.suppress(LookupError):
                return _workload(inner)
    if isinstance(value, list):
        for inner in value:
            with contextlib.suppress(LookupError):
                return _workload(inner)
    raise LookupError


WITHHOLDING = """
[withhold]
label_counts = true
sizes = "withheld"
class_names = true
statistics = true
digests = true
"""


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["", WITHHOLDING], ids=["everything", "withholding"])
def test_a_run_sends_the_declared_fields_and_nothing_of_the_data(place: Place, policy: str) -> None:
    site = place.site("north", policy)
    outcome, refusals = place.run(round={"weighting": "uniform"})
    assert outcome.summary.status == "done", (outcome.error, refusals)
    fields = sent(place)
    declared = {(each.message, each.field) for each in sent_fields()}
    assert {(name, field) for name, field, _ in fields} <= declared
    assert {name for name, _, _ in fields} >= {"RegisterRequest", "FromAgent", "GroupResult", "Report", "Metric"}
    text = b"".join(message.SerializeToString() for message in place.messages)
    content = (site.data / "patients.csv").read_bytes()
    for secret in (*site.secrets, "diagnosis", *patients.CLASSES):
        assert secret.encode() not in text, secret
    reports = [value for name, field, value in fields if (name, field) == ("Report", "num_examples")]
    weights = {value for name, field, value in fields if (name, field) == ("Metric", "weight")}
    info, digest = described(place), hashlib.sha256(content).hexdigest()
    if not policy:
        assert reports == [30] * 4 and weights == {30.0} and digest.encode() in text
        assert info["label_counts"] == [list(patients.COUNTS)] * 2 and info["client_sizes"] == [30, 30]
        assert all(name.startswith("sha256:") for name in info["label_names"])
        assert info["data"]["oldest"] == 69.0
        return
    assert reports == [1] * 4 and weights == {1.0} and digest.encode() not in text
    assert info["label_counts"] == info["client_sizes"] == [] and info["label_names"] == ["class 0", "class 1"]
    assert info["data"] == {
        "name": "patients", "kind": "real", "shape": [1],
        "schema": {"shape": [1], "withheld": ["classes", "mean", "std"]}, "withholds_sizes": True,
    }  # fmt: skip
    means = {name: array.tolist() for name, array in outcome.arrays.items()}
    assert means == {"ages": [40 + 18 / 2, 40 + 19 + 10 / 2]}, "the model itself is what was asked for"


HOOK = "import json, sys; run = json.load(sys.stdin); print('no runs of', run['submitter']); sys.exit(3)"


@pytest.mark.slow
def test_work_that_breaks_a_rule_is_refused_with_a_reason_that_the_run_shows(place: Place) -> None:
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("[limits]\nmin_cohort = 5", {}, "data", "the run's cohort has 2 clients, expected at least 5"),
        ("[limits]\nalone = false", {"clients": 1}, "alone", "takes part only with others"),
        ("[limits]\nhours = []\nhook = ['/bin/false']", {}, "hook", "not now: the hook exited with 1"),
        ("submitters = ['bob']", {}, "submitter", "runs of 'ann' (user) are not accepted here"),
        ("[withhold]\nsizes = 'withheld'", {}, "data", "set round.weighting = 'uniform'"),
        ("[withhold]\nlabel_counts = true", {"selection": "label_oracle"}, "data", "needs label counts of clients"),
        (f"[approval]\ncommand = ['{sys.executable}', '-c', \"{HOOK}\"]", {}, "approval", "no runs of ann"),
        ("[limits]\nbytes_per_day = 1", {}, "bytes", "bytes more would exceed the day's 1"),
    ]
    for number, (policy, values, kind, reason) in enumerate(cases):
        with contextlib.ExitStack() as stack:
            site = Site(place.fleet, f"site-{number}", policy)
            stack.callback(site.stop)
            outcome, refusals = place.run(f"run-{number}", **values)
            assert outcome.summary.status != "done", policy
            told = {(each.node, each.kind) for each in refusals}
            assert (site.name, kind) in told, (policy, refusals, outcome.error)
            assert any(reason in each.reason for each in refusals), (policy, refusals)


@pytest.mark.slow
def test_a_days_runs_and_rounds_are_counted_over_restarts_of_the_node(place: Place) -> None:
    site = place.site("north", "[limits]\nruns_per_day = 2\nrounds_per_day = 5")
    said = (place.fleet.folder / "log-north").read_text(encoding="utf-8")
    assert "node north: at most 2 runs a day" in said and "node north: at most 5 rounds a day" in said
    assert place.run("a")[0].summary.status == "done"
    site.stop()
    site.start()
    assert place.run("b")[0].summary.status == "done"
    outcome, refusals = place.run("c")
    assert outcome.summary.status != "done"
    assert {(each.kind, each.reason) for each in refusals} == {
        ("runs", "the node has worked for 2 runs today, which is its limit")
    }
    outcome, refusals = place.run("b", rounds=4)
    assert outcome.summary.status != "done" and {each.kind for each in refusals} == {"rounds"}
