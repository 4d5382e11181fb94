"""The initial model: another node is asked where one cannot make it, and what is said when none can."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from policies import Fleet
from support_paths import LINEAR

from fedloom.core.code_names import CodeName
from fedloom.core.config import Experiment
from fedloom.core.errors import ClientFailed, DataMissing, QuorumNotReached
from fedloom.core.events import NodeRefused
from fedloom.server.log import LogSink
from fedloom.testing.fleet import EventLog, run_on_fleet, wait_until

Make = Callable[..., Experiment]


def policy(folder: Path, *files: str, **values: Any) -> dict[str, Any]:
    """A node that says all, whose data folder has these files."""
    folder.mkdir()
    for file in files:
        (folder / file).touch()
    return {"workloads": {str(LINEAR): {"data": str(folder)}}, "tracebacks": True, **values}


class TestAnotherIsAsked:
    @pytest.mark.parametrize(("need", "stage"), [("needs", "load"), ("init_needs", "init")])
    def test_the_run_is_done_and_the_log_has_what_the_first_said(
        self, need: str, stage: str, linear: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "fedloom.server.log")
        north, south = policy(tmp_path / "north"), policy(tmp_path / "south", "weights")
        listener = EventLog()
        outcome = Fleet(tmp_path, north=north, south=south).run(
            linear(workload={need: "$DATA/weights"}), listener, LogSink()
        )
        assert outcome.error is None and outcome.summary.status == "done"
        assert outcome.summary.model_sha256 == run_on_fleet(linear()).summary.model_sha256, "whoever makes the model"
        reason = f"stage {stage}: fedloom.core.errors.DataMissing: there is no {tmp_path}/north/weights; create it"
        first, *later = listener.of(NodeRefused)
        assert (first.round, first.node, first.kind, first.reason) == (0, "north", "failure", reason)
        (line,) = [record for record in caplog.records if getattr(record, "round", None) == 0]
        assert (line.levelname, line.getMessage(), vars(line)["node"]) == ("WARNING", f"node failed: {reason}", "north")
        # A node without what all its work needs is asked again in later rounds, and its clients go elsewhere, too.
        assert all((event.node, event.kind) == ("north", "failure") for event in later) and bool(later) == (
            need == "needs"
        )
        assert [record.failures for record in outcome.history] == [[]] * 4
        for record in outcome.history:
            assert record.refusals == ({"north": reason} if any(e.round == record.round for e in later) else {})

    def test_a_node_that_refuses_is_passed_over_like_one_that_fails(self, linear: Make, tmp_path: Path) -> None:
        north, south = policy(tmp_path / "north"), policy(tmp_path / "south", "weights")
        listener = EventLog()
        outcome = Fleet(tmp_path, east={}, north=north, south=south).run(
            linear(workload={"init_needs": "$DATA/weights"}), listener
        )
        assert outcome.error is None
        assert [(e.node, e.kind) for e in listener.of(NodeRefused) if e.round == 0] == [
            ("east", "workload"),
            ("north", "failure"),
        ]

    def test_a_refusal_is_reported_while_the_run_waits_and_once(self, linear: Make, tmp_path: Path) -> None:
        ready, asked = tmp_path / "ready", tmp_path / "asked"
        hook = ["sh", "-c", f"echo x >> {asked}; test -e {ready} || {{ echo charging; exit 1; }}"]
        limits = {"hook": hook, "hook_every_s": 0.05}

        class Mains(EventLog):
            """Plugs the node in when it hears that it is not, after it was asked again."""

            def write(self, event: Any) -> None:
                super().write(event)
                if isinstance(event, NodeRefused) and not ready.exists():
                    wait_until(
                        lambda: len(asked.read_text(encoding="utf-8").split()) >= 3, what="that it was asked again"
                    )
                    ready.touch()

        mains = Mains()
        outcome = Fleet(tmp_path, shy=policy(tmp_path / "shy", limits=limits)).run(linear(rounds=1), mains)
        assert outcome.error is None
        (reported,) = mains.of(NodeRefused)
        assert (reported.round, reported.kind, reported.reason) == (0, "hook", "not now: charging")


class TestNoneCan:
    def test_each_node_is_listed_with_what_it_said(self, linear: Make, tmp_path: Path) -> None:
        nodes = {name: policy(tmp_path / name) for name in ("north", "south")}
        outcome = Fleet(tmp_path, **nodes).run(linear(workload={"init_needs": "$DATA/weights"}))
        assert isinstance(outcome.error, DataMissing) and outcome.summary.status == "failed"
        head, *reported = str(outcome.error).splitlines()
        assert head.startswith("no node could create the initial model. Fix one of the causes below")
        missing = "stage init: fedloom.core.errors.DataMissing: there is no"
        assert reported == [f"  {name}: {missing} {tmp_path}/{name}/weights; create it" for name in ("north", "south")]

    def test_what_all_say_is_reported_once_with_their_names(self, linear: Make, tmp_path: Path) -> None:
        nodes = {name: policy(tmp_path / name) for name in ("north", "south", "west")}
        outcome = Fleet(tmp_path, **nodes).run(linear(workload={"features": -1}))
        assert isinstance(outcome.error, ClientFailed)
        text = str(outcome.error)
        assert text.startswith(
            "client 0, round 0, stage init on north: ValueError: negative dimensions are not allowed\n"
        )
        assert text.count("ValueError: negative") == 2, "in the first line, and where the one traceback ends"
        assert text.endswith("\nReported by north, south, west when creating the initial model.")

    def test_nodes_that_keep_their_reasons_to_themselves_are_named(self, linear: Make, tmp_path: Path) -> None:
        nodes = {name: policy(tmp_path / name, tracebacks=False) for name in ("north", "south")}
        outcome = Fleet(tmp_path, **nodes).run(linear(workload={"needs": "$DATA/weights"}))
        assert isinstance(outcome.error, DataMissing)
        assert str(outcome.error) == (
            "client 0, round 0, stage load on north: fedloom.core.errors.DataMissing: the node does not send "
            "the details; see its log\nReported by north, south when creating the initial model."
        )

    def test_one_node_alone_is_shown_as_it_is(self, linear: Make, tmp_path: Path) -> None:
        outcome = Fleet(tmp_path, north=policy(tmp_path / "north")).run(linear(workload={"needs": "$DATA/weights"}))
        assert isinstance(outcome.error, DataMissing)
        assert str(outcome.error) == f"there is no {tmp_path}/north/weights; create it"

    def test_one_that_refuses_is_listed_too(self, linear: Make, tmp_path: Path) -> None:
        outcome = Fleet(tmp_path, east={}, north=policy(tmp_path / "north")).run(
            linear(workload={"init_needs": "$DATA/weights"})
        )
        assert isinstance(outcome.error, QuorumNotReached)
        assert str(outcome.error).splitlines()[1:] == [
            f"  north: stage init: fedloom.core.errors.DataMissing: there is no {tmp_path}/north/weights; create it",
            f"  east: refused: workload {str(CodeName.of(LINEAR))!r} is not allowed here (allowed: none)",
        ]
