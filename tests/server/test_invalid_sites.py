"""Sites that are wrong in some way: each is named with the reason, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_fleet import OWN_ROWS, Sites, experiment, rows, train_rows

from fedloom.core.errors import FedloomError, QuorumNotReached, UsageError
from fedloom.core.events import Notice
from fedloom.testing.fleet import EventLog


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    fleet = Sites(tmp_path)
    try:
        yield fleet
    finally:
        fleet.close()


def said(log: EventLog) -> str:
    return "\n".join(event.message for event in log.of(Notice))


def test_two_sites_with_the_same_data_are_pointed_out(sites: Sites) -> None:
    x, y = rows("a")
    for name in "abc":
        sites.write(name, x if name != "b" else x + 1, y)
    sites.start("a", "b", "c")
    log = EventLog()
    assert sites.run(experiment(rounds=1), sinks=[log]).error is None
    assert "sites a, c have the same data (SHA-256 " in said(log)


def test_an_empty_site_is_left_out(sites: Sites) -> None:
    sites.write("b", np.zeros((0, 3)), np.zeros(0, int))
    sites.start("a", "b")
    log = EventLog()
    outcome = sites.run(experiment(rounds=2), sinks=[log])
    assert outcome.error is None
    assert [record.num_examples for record in outcome.history] == [len(train_rows("a"))] * 2
    assert "site 'b' is no client of this run" in said(log) and "the table has no rows" in said(log)


def test_a_run_of_empty_sites_alone_fails_with_the_reason(sites: Sites) -> None:
    sites.write("a", np.zeros((0, 3)), np.zeros(0, int))
    sites.start("a")
    outcome = sites.run(experiment())
    assert isinstance(outcome.error, FedloomError) and "the table has no rows" in str(outcome.error)


def test_a_site_that_forbids_evaluation_trains_and_is_listed(sites: Sites, tmp_path: Path) -> None:
    sites.start("a")
    allowed = {OWN_ROWS: {"data": str(tmp_path / "data-b"), "evaluation": False}}
    sites.start("b", workloads=allowed)
    outcome = sites.run(experiment(rounds=2))
    assert outcome.error is None
    assert [record.num_examples for record in outcome.history] == [len(train_rows("a")) + len(train_rows("b"))] * 2
    section = outcome.history[-1].sections["sites"]
    assert [site["site"] for site in section["sites"]] == ["a"] and [*section["missing"]] == ["b"]
    assert "forbids evaluation" in section["missing"]["b"]


def test_a_run_whose_sites_all_forbid_evaluation_goes_on_without(sites: Sites, tmp_path: Path) -> None:
    sites.start("a", workloads={OWN_ROWS: {"data": str(tmp_path / "data-a"), "evaluation": False}})
    log = EventLog()
    outcome = sites.run(experiment(rounds=2), sinks=[log])
    assert outcome.error is None and [record.evaluation for record in outcome.history] == [None, None]
    assert "round 1: no evaluation: " in said(log)


def test_a_site_with_a_full_disk_is_missing(sites: Sites, tmp_path: Path) -> None:
    sites.start("a", "b")

    def fill() -> None:
        states = tmp_path / "b" / "states"
        for path in sorted(states.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        states.rmdir()
        states.write_text("no folder can be made here", encoding="utf-8")

    outcome = sites.run(experiment(rounds=3), after={1: fill})
    assert outcome.error is None
    failures = [record.failures for record in outcome.history]
    assert [len(found) for found in failures] == [0, 1, 1] and failures[1][0].node == "b"
    assert "StorageFull" in failures[1][0].error and "Free disk space there" in failures[1][0].message


@pytest.mark.parametrize("name", ["label_oracle", "data_size"])
def test_selections_that_need_what_sites_withhold_are_refused(sites: Sites, monkeypatch: Any, name: str) -> None:
    from fedloom.server.rounds.descriptions import Described

    line = Described.line

    def silent(self: Described, client: int) -> Any:
        return line(self, client).model_copy(update={"size": None, "label_counts": None} if self.name == "b" else {})

    monkeypatch.setattr(Described, "line", silent)
    sites.start("a", "b")
    outcome = sites.run(experiment(rounds=1, cohort=1, selection=name))
    assert isinstance(outcome.error, UsageError | QuorumNotReached) and name in str(outcome.error)
    assert "A site of a, b may withhold its own" in str(outcome.error)
