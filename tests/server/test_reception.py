"""A submission is checked by the server and the nodes that would do it; one that is accepted says what it waits for."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from policies import guard
from shell import Shell
from support_paths import LINEAR

from fedloom.client.agent import Agent
from fedloom.client.control import ControlClient
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.setup import NodeSetup
from fedloom.core.clock import SYSTEM_CLOCK
from fedloom.core.config import Experiment
from fedloom.core.errors import RunFailed
from fedloom.core.messages import Inquiry, RunSpec, Verdict
from fedloom.server.fleet import inquiries
from fedloom.server.fleet.inquiries import Inquiries
from fedloom.server.fleet.nodes import Mailbox
from fedloom.server.run_queue import RunQueue
from fedloom.testing.fleet import TOKEN, quick_server, wait_until

Make = Callable[..., Experiment]
ALLOWS = {"workloads": {str(LINEAR): {}}, "code": [str(LINEAR)]}


class Place:
    """A server that begins no run, and agents with policies."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.server = stack.enter_context(quick_server(shared_memory=False))
        self.runs = stack.enter_context(contextlib.closing(RunQueue(folder / "state", lambda *_: pytest.fail("begun"))))
        self.address = f"127.0.0.1:{self.server.listen(token=TOKEN, runs=self.runs)}"
        self.control = stack.enter_context(ControlClient(self.address, TOKEN))

    def join(self, name: str, **policy: object) -> None:
        agent = Agent(GrpcChannel(self.address, TOKEN), name, NodeSetup(guard=guard(self._folder, **policy)))
        thread = threading.Thread(target=agent.run)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(agent.stop)
        coordinator = self.server.coordinator
        wait_until(lambda: (node := coordinator.nodes().get(name)) is not None and not node.fresh)

    def submitted(self, experiment: Experiment) -> list[str]:
        """What a submission that is accepted says."""
        notes = list[str]()
        self.control.submit(experiment, notes.append)
        return notes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        yield Place(tmp_path, stack)


def test_without_a_node_a_run_is_queued_and_says_what_it_waits_for(place: Place, linear: Make) -> None:
    assert place.submitted(linear(runtime={})) == ["no node is connected; the run waits for one"]
    notes = place.submitted(linear(runtime={}, fleet={"labels": {"site": "lab"}}))
    assert notes == ["no node with site=lab is connected; the run waits for one"]
    assert [row.status for row in place.control.runs()] == ["queued", "queued"]


def test_settings_of_a_runtime_are_named(place: Place, linear: Make) -> None:
    place.join("north", **ALLOWS)
    notes = place.submitted(linear(runtime={"name": "inline", "workers": 4}))
    assert notes == [
        "without effect on a server, whose nodes do the work: runtime.name = 'inline', runtime.workers = 4"
    ]
    assert place.submitted(linear(runtime={}, fleet={"min_nodes": 3})) == [
        "1 node connected; the run waits for 3 (fleet.min_nodes)"
    ]


def test_sites_that_are_lacking_are_named(place: Place, linear: Make) -> None:
    place.join("north", **ALLOWS)
    place.join("south", **ALLOWS)
    assert place.submitted(linear(runtime={}, clients="nodes", round={"min_sites": 2})) == []
    assert place.submitted(linear(runtime={}, clients="nodes", round={"min_sites": 5})) == [
        "2 nodes connected (north, south); the run waits for 5 sites (round.min_sites)"
    ]
    assert place.submitted(linear(runtime={}, clients=["north", "west", "east"])) == [
        "not all sites of `clients` are connected; the run waits for east, west"
    ]


def test_where_every_node_refuses_nothing_is_queued(place: Place, linear: Make) -> None:
    place.join("north")
    place.join("south", **{**ALLOWS, "submitters": ["ann"]})
    with pytest.raises(RunFailed, match="nothing was queued: 2 nodes would have to do this run") as caught:
        place.submitted(linear(runtime={}))
    assert re.search(r"  north: workload .* is not allowed here", str(caught.value))
    assert re.search(r"  south: runs of '' \(no role\) are not accepted here", str(caught.value))
    assert place.control.runs() == []
    place.join("west", **ALLOWS)
    (note,) = place.submitted(linear(runtime={}))
    assert note.startswith("nodes that refuse it:\n  north: ") and "west" not in note
    assert len(place.control.runs()) == 1


def test_a_refusal_that_ends_is_waited_for(place: Place, linear: Make) -> None:
    place.join("north", **{**ALLOWS, "limits": {"hours": ["01:00-02:00"]}})
    first, second = place.submitted(linear(runtime={}))
    assert first == "every connected node refuses it for now; the run waits until one does not"
    assert second == "nodes that refuse it:\n  north: the node works only at 01:00-02:00"


def test_a_node_that_cannot_read_the_experiment_refuses_without_its_details(
    place: Place, linear: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.join("north", **ALLOWS)

    def fails(self: object) -> None:
        raise ValueError("/home/node/secret")

    monkeypatch.setattr("fedloom.client.run.Run.experiment", property(fails))
    with pytest.raises(RunFailed, match="ValueError: the node does not send the details") as caught:
        place.submitted(linear(runtime={}))
    assert "secret" not in str(caught.value)


class TestInquiries:
    def test_an_unasked_verdict_counts_for_nobody(self) -> None:
        asked, boxes = Inquiries(SYSTEM_CLOCK), {"north": Mailbox(), "south": Mailbox()}

        def answer() -> None:
            message = boxes["north"].get(5.0)
            assert isinstance(message, Inquiry)
            for node, kind in (("thief", "code"), ("north", "hours"), ("north", ""), ("south", "")):
                asked.answer(node, Verdict(id=message.id, kind=kind))
            asked.answer("north", Verdict(id="another"))

        thread = threading.Thread(target=answer)
        thread.start()
        verdicts = asked.ask(RunSpec(run_id="r", experiment={}), boxes)
        thread.join()
        assert {name: verdict.kind for name, verdict in verdicts.items()} == {"north": "hours", "south": ""}

    def test_one_that_never_replies_is_not_waited_for_longer_than_that(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inquiries, "WAIT_S", 0.1)
        monkeypatch.setattr(inquiries, "SETTLED_S", 0.05)
        asked = Inquiries(SYSTEM_CLOCK)
        assert asked.ask(RunSpec(run_id="r", experiment={}), {"north": Mailbox()}) == {}
        assert asked.ask(RunSpec(run_id="r", experiment={}), {}) == {}


@pytest.mark.slow
def test_a_joined_node_is_asked_before_a_run_is_queued(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        f'rounds = 1\nclients = 2\nstrategy = "fedavg"\n[workload]\nname = "{LINEAR}"\n', encoding="utf-8"
    )
    with contextlib.closing(Shell(tmp_path)) as shell:
        _, _, log = shell.serve(0, "--allow", str(LINEAR))
        for name, role, options in (("ann", "user", ()), ("north", "node", ("--allow", "image_classification"))):
            token = shell.run("token", "create", "--name", name, "--role", role, "--identity", "state/admin").strip()
            shell.run("join", token, "--identity", name, *options)
        said = shell.run("submit", "x.toml", "--identity", "ann")
        assert "no node is connected; the run waits for one" in said
        shell.run("stop", said.splitlines()[0], "--identity", "ann")
        shell.start("client", "--identity", "north")
        wait_until(lambda: "node online" in log.read_text(encoding="utf-8"), 60, "the node")
        said = shell.run("submit", "x.toml", "--identity", "ann", code=1)
        assert "1 node would have to do this run, and every one refuses it:" in said
        assert re.search(r"north: workload .* is not allowed here", said)
        listed = shell.run("runs", "--identity", "ann")
        assert len(listed.splitlines()) == 2, "the head, and the run that was stopped"
        audit = shell.run("audit", "--json", "--identity", "state/admin").splitlines()
        assert sum(json.loads(line)["event"] == "submitted" for line in audit) == 1
