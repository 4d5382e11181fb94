"""Models of single sites: the global model after local training, and shared ones at all sites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_fleet import OWN_ROWS, Sites, experiment, rows, train_rows

from fedloom.client import jobs
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.events import NodeRefused
from fedloom.core.records import Update
from fedloom.reporting import write_report
from fedloom.server.rounds import sites as sites_module
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.fleet import EventLog

GIVEN = {"mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    fleet = Sites(tmp_path)
    try:
        yield fleet
    finally:
        fleet.close()


def loss(w: Any, name: str) -> float:
    """The loss of a model on a site's validation rows."""
    x = rows(name)[0]
    return float(((x[np.arange(len(x)) % 5 == 4] - w) ** 2).sum(1).mean())


def test_models_of_sites_that_share_them_are_evaluated_at_every_site(sites: Sites, tmp_path: Path) -> None:
    sites.start("a", "c", share_local_model=True)
    sites.start("b")
    store, log = DiskRunStore.create(tmp_path / "run", "run"), EventLog()
    one = experiment(rounds=2, workload={"data": GIVEN}, round={"min_sites": 3})
    outcome = sites.run(one, store=store, sinks=[log])
    assert outcome.error is None
    w = np.concatenate([train_rows(name) for name in "abc"]).mean(0)
    own = {name: train_rows(name).mean(0) for name in "ac"}  # training returns the mean of a site's rows
    found = outcome.history[-1].sections["cross_sites"]
    assert found["sites"] == ["a", "b", "c"] and found["models"] == ["global", "a", "b", "c"]
    want = [[loss(w, name), loss(own["a"], name), "n/a", loss(own["c"], name)] for name in "abc"]
    assert [[row[2] for row in found["metrics"]["loss"]]] == [["n/a"] * 3]
    for row, expected in zip(found["metrics"]["loss"], want, strict=True):
        assert [row[0], row[1], row[3]] == pytest.approx([expected[0], expected[1], expected[3]])
    assert outcome.summary.cross_sites == found
    assert "cross_sites" not in outcome.history[0].sections and not log.of(NodeRefused)
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "loss of each model (columns) at each site (rows)" in text and "n/a" in text
    private = "its policy does not share a model that was trained there alone (share_local_model)"
    assert found["reasons"] == {"models": {"b": private}, "sites": {}} and f"n/a: the model of b: {private}" in text


def test_models_leave_no_site_that_does_not_share_them_and_the_run_is_the_same(tmp_path: Path) -> None:
    found = []
    for shared in (False, True):
        fleet = Sites(tmp_path / str(shared))
        fleet.folder.mkdir()
        try:
            fleet.start("a", "b", share_local_model=shared)
            outcome = fleet.run(experiment(workload={"data": GIVEN}))
        finally:
            fleet.close()
        section = outcome.history[-1].sections["cross_sites"]
        found.append((outcome.summary.model_sha256, [record.evaluation for record in outcome.history]))
        values = [value for row in section["metrics"]["loss"] for value in row[1:]]
        assert [value == "n/a" for value in values] == [not shared] * 4
    assert found[0] == found[1]


@pytest.mark.parametrize("times", [1, 3])
def test_the_global_model_is_evaluated_after_local_training(sites: Sites, tmp_path: Path, times: int) -> None:
    sites.start("a", "b")
    store = DiskRunStore.create(tmp_path / "run", "run")
    one = experiment(rounds=2, workload={"data": GIVEN, "rate": 0.25}, evaluation={"fine_tune": times})
    outcome = sites.run(one, store=store)
    assert outcome.error is None
    w, own = np.zeros(3), {name: train_rows(name).mean(0) for name in "ab"}
    both = np.concatenate([train_rows("a"), train_rows("b")]).mean(0)
    for record in outcome.history:
        w = w + 0.25 * (both - w)
        found = record.sections["sites_fine_tuned"]
        assert found["times"] == times
        tuned = [site["metrics"]["loss"] for site in found["sites"]]
        assert tuned == pytest.approx([loss(own[name] + 0.75**times * (w - own[name]), name) for name in "ab"])
        plain = [site["metrics"]["loss"] for site in record.sections["sites"]["sites"]]
        assert plain == pytest.approx([loss(w, name) for name in "ab"])
    assert [record.metrics["times"] for record in outcome.history] == [1.0, 2.0], "clients' states are as without"
    head = f"loss after {times} local training{'s' * (times > 1)}"
    assert head in write_report(tmp_path / "run").read_text(encoding="utf-8")


def test_a_site_that_forbids_evaluation_trains_no_model_for_it(sites: Sites, tmp_path: Path) -> None:
    sites.start("a")
    (tmp_path / "data-b").mkdir()
    x, y = rows("b")
    np.savez(tmp_path / "data-b" / "rows.npz", x=x, y=y)
    workloads = {OWN_ROWS: {"data": str(tmp_path / "data-b"), "evaluation": False}}
    sites.start("b", workloads=workloads, share_local_model=True)
    one = experiment(rounds=1, workload={"data": GIVEN}, evaluation={"fine_tune": 1})
    outcome = sites.run(one)
    assert outcome.error is None
    found = outcome.history[-1].sections
    assert [site["site"] for site in found["sites_fine_tuned"]["sites"]] == ["a"]
    assert "forbids evaluation" in found["sites_fine_tuned"]["missing"]["b"]
    first, second = found["cross_sites"]["metrics"]["loss"]
    assert first[1] == "n/a" and first[2] == pytest.approx(loss(train_rows("b").mean(0), "a"))
    assert second == ["n/a"] * 3
    reasons = found["cross_sites"]["reasons"]
    assert [*reasons["models"]] == ["a"] and "forbids evaluation" in reasons["sites"].pop("b") and not reasons["sites"]


def test_the_matrix_says_which_sites_were_away(sites: Sites) -> None:
    sites.start("a", "b", share_local_model=True)
    one = experiment(rounds=2, workload={"data": GIVEN})
    outcome = sites.run(one, after={1: lambda: sites.stop("b")})
    assert outcome.error is None
    found = outcome.history[-1].sections["cross_sites"]
    assert [[value == "n/a" for value in row] for row in found["metrics"]["loss"]] == [[False, False, True], [True] * 3]
    assert found["reasons"] == {part: {"b": "the site is not connected"} for part in ("models", "sites")}


def test_fine_tuning_is_for_sites() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.fine_tune: got 2, but clients = 3 are virtual clients"):
        experiment(clients=3, evaluation={"fine_tune": 2})
    with pytest.raises(ConfigError, match=r"evaluation\.fine_tune"):
        experiment(evaluation={"fine_tune": 0})
    assert isinstance(experiment(evaluation={"fine_tune": 2}), Experiment)


def test_a_site_sends_no_model_that_a_server_asks_for_against_its_policy(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.start("a", share_local_model=True)
    sites.start("b")
    monkeypatch.setattr(sites_module.Sites, "sharing", lambda self: frozenset({0, 1}))
    log = EventLog()
    outcome = sites.run(experiment(rounds=1, workload={"data": GIVEN}), sinks=[log])
    assert outcome.error is None
    section = outcome.history[-1].sections["cross_sites"]
    assert [[value == "n/a" for value in row] for row in section["metrics"]["loss"]] == [[False, False, True]] * 2
    assert "shares no model trained on its data alone" in section["reasons"]["models"]["b"]
    assert [(each.node, each.reason) for each in log.of(NodeRefused)] == [
        ("b", "the node's policy shares no model trained on its data alone")
    ]


def test_a_model_of_another_form_than_the_global_one_is_evaluated_nowhere(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.start("a", share_local_model=True)
    other = Update(num_examples=1, groups={"model": {"w": np.zeros(4)}})
    monkeypatch.setattr(jobs, "local_model", lambda turn: other)
    outcome = sites.run(experiment(rounds=1, workload={"data": GIVEN}))
    assert outcome.error is None
    section = outcome.history[-1].sections["cross_sites"]
    assert [row[1:] for row in section["metrics"]["loss"]] == [["n/a"]]
    assert "other arrays than the global one" in section["reasons"]["models"]["a"]
