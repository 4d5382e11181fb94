"""Clients that are sites: each has data and a number of its own; they come, go and return; their runs resume."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_fleet import Sites, experiment, rows, train_rows

from fedloom.core.accumulators import UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import Interrupted, QuorumNotReached
from fedloom.core.events import Notice
from fedloom.core.protocols import Roster
from fedloom.core.records import ClientFailure, ClientReport, Mean, Update
from fedloom.reporting import write_report
from fedloom.server.rounds import sites as sites_module
from fedloom.server.rounds.choices import replay_run
from fedloom.server.rounds.counts import Collected, RoundCounts
from fedloom.server.rounds.equal_counts import counted_alike
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.rounds.site_metrics import site_section
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.testing.fleet import EventLog


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    fleet = Sites(tmp_path)
    try:
        yield fleet
    finally:
        fleet.close()


def pooled(*names: str) -> Any:
    """The mean of the normalised rows of sites, which is 0, and what they were normalised by."""
    x = np.concatenate([train_rows(name) for name in names])
    return x.mean(0), x.std(0)


def test_each_client_is_one_site_with_all_of_its_data(sites: Sites) -> None:
    sites.start("b", "a", "c")
    store = MemoryRunStore("run")
    outcome = sites.run(experiment(), store=store)
    assert outcome.error is None
    sizes = [len(train_rows(name)) for name in "abc"]
    assert [record.num_examples for record in outcome.history] == [sum(sizes)] * 3
    info = store.workload()
    assert info is not None and list(info.client_sizes) == sizes
    assert [site["site"] for site in info.data["sites"]] == ["a", "b", "c"]
    assert info.data["num_train"] == sum(sizes) and "sums" not in str(info.data)
    assert [(site.client, site.name) for line in store.rosters() for site in line.joined] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
    ]
    np.testing.assert_allclose(outcome.arrays["w"], 0.0, atol=1e-12)  # the mean of rows normalised by their own mean
    mean, std = pooled("a", "b", "c")
    held = np.concatenate([rows(name)[0][np.arange(len(rows(name)[0])) % 5 == 4] for name in "abc"])
    want = (((held - mean) / std) ** 2).sum(1).mean()
    assert outcome.history[-1].evaluation is not None
    assert outcome.history[-1].evaluation["loss"] == pytest.approx(want)


def test_each_sites_metrics_are_in_the_record_and_the_report(sites: Sites, tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(5)]
    sites.start(*names)
    store = DiskRunStore.create(tmp_path / "run", "run")
    given = {"mean": [0.0] * 3, "std": [1.0] * 3}
    outcome = sites.run(experiment(rounds=2, workload={"data": given}), store=store)
    assert outcome.error is None
    w = np.concatenate([train_rows(name) for name in names]).mean(0)
    held = {name: rows(name)[0][np.arange(len(rows(name)[0])) % 5 == 4] for name in names}
    want = {name: float(((x - w) ** 2).sum(1).mean()) for name, x in held.items()}
    section = outcome.history[-1].sections["sites"]
    assert [site["site"] for site in section["sites"]] == names
    for site in section["sites"]:
        assert site["metrics"]["loss"] == pytest.approx(want[site["site"]])
    assert section["worst"]["loss"]["value"] == pytest.approx(max(want.values()))
    assert section["worst"]["loss"]["site"] == max(want, key=lambda name: want[name])
    ordered = sorted(want.values())
    assert section["p10"]["loss"] == pytest.approx(ordered[3] + 0.6 * (ordered[4] - ordered[3])), "rank 0.9 * 4 = 3.6"
    total = sum(len(x) for x in held.values())
    assert outcome.history[-1].evaluation is not None
    mean = sum(want[name] * len(held[name]) for name in names) / total
    assert outcome.history[-1].evaluation["loss"] == pytest.approx(mean)
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "10th percentile" in text and all(f">{name}<" in text for name in names)


def test_more_is_better_of_accuracies_and_a_site_that_does_not_evaluate_is_named() -> None:
    roster = Roster(3, names=("a", "b", "c"))
    reports = [
        ClientReport(client=client, num_examples=10, seconds=0.0, metrics={"accuracy": Mean(right, 10.0)})
        for client, right in ((0, 9.0), (1, 5.0))
    ]
    refused = ClientFailure(client=2, round=1, stage="policy", error="PolicyRefused", message="not here")
    found = site_section(roster, reports, [refused], {})
    assert found["worst"] == {"accuracy": {"site": "b", "value": 0.5}}
    assert found["p10"] == {"accuracy": pytest.approx(0.54)}
    assert found["missing"] == {"c": "stage policy: PolicyRefused: not here"}


def test_whatever_arrives_first_the_bits_are_equal(tmp_path: Path) -> None:
    found = []
    for order in (("a", "b", "c"), ("c", "a", "b")):
        fleet = Sites(tmp_path / order[0])
        fleet.folder.mkdir()
        try:
            fleet.start(*order)
            outcome = fleet.run(experiment(cohort=2, workload={"data": {"mean": [0.0] * 3, "std": [1.0] * 3}}))
            found.append((outcome.summary.model_sha256, [record.cohort for record in outcome.history]))
        finally:
            fleet.close()
    assert found[0] == found[1] and found[0][0] is not None


def test_a_site_that_leaves_is_missing_and_the_same_client_when_it_is_back(sites: Sites) -> None:
    sites.start("a", "b")
    after = {1: lambda: sites.stop("b"), 3: lambda: sites.start("b")}
    outcome = sites.run(experiment(rounds=5), after=after)
    assert outcome.error is None
    sizes = {name: len(train_rows(name)) for name in "ab"}
    both = sizes["a"] + sizes["b"]
    assert [record.num_examples for record in outcome.history] == [both, sizes["a"], sizes["a"], both, both]
    assert [[failure.client for failure in record.failures] for record in outcome.history] == [[], [1], [1], [], []]
    assert "is not connected" in outcome.history[1].failures[0].message
    assert outcome.history[1].sections["roster"]["offline"] == {"1": "b"}
    assert [round(record.metrics["times"], 6) for record in outcome.history] == [
        1.0,
        2.0,
        3.0,
        3.0,
        4.0,
    ]  # (4+2)/2, (5+3)/2


def test_a_later_site_gets_the_next_number_from_the_next_round_on(sites: Sites) -> None:
    sites.start("b", "c")
    given = {"mean": [0.0] * 3, "std": [1.0] * 3}
    store = MemoryRunStore("run")
    one = experiment(rounds=3, workload={"data": given}, selection="update_norm")
    log = EventLog()
    outcome = sites.run(one, store=store, after={1: lambda: sites.start("a")}, sinks=[log])
    assert outcome.error is None
    notices = [event.message for event in log.of(Notice)]
    assert [message for message in notices if "joined" in message] == [
        "round 2: site 'a' has joined the run as client 2"
    ]
    assert [sorted(record.cohort) for record in outcome.history] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    assert outcome.history[1].sections["roster"] == {
        "population": 3, "joined": 1, "joined_names": ["a"], "offline": {}
    }  # fmt: skip
    info = store.workload()
    assert info is not None and [site["site"] for site in info.data["sites"]] == ["b", "c", "a"]
    np.testing.assert_allclose(outcome.arrays["w"], np.concatenate([train_rows(name) for name in "abc"]).mean(0))
    checkpoint = store.latest_checkpoint()
    assert checkpoint is not None and checkpoint.population == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"round": {"min_sites": 2}}, "2 sites are needed (round.min_sites) (connected: a)"),
        ({"clients": ["b", "a"]}, "not all sites of `clients` are connected (missing: b)"),
    ],
)
def test_a_run_waits_for_as_many_sites_as_it_needs_or_names(
    sites: Sites, monkeypatch: pytest.MonkeyPatch, values: Any, said: str
) -> None:
    monkeypatch.setattr("fedloom.server.rounds.wait_notices.PATIENCE_S", 0.0)
    sites.start("a")

    class Joins(EventLog):
        def write(self, event: Any) -> None:
            super().write(event)
            if isinstance(event, Notice) and said in event.message:
                sites.start("b")

    outcome = sites.run(experiment(rounds=1, **values), sinks=[Joins()])
    assert outcome.error is None and sorted(outcome.history[0].cohort) == [0, 1]


def test_other_nodes_than_those_named_are_no_clients(sites: Sites) -> None:
    sites.start("a", "b", "c")
    outcome = sites.run(experiment(rounds=1, clients=["c", "a"]))
    assert outcome.history[0].num_examples == len(train_rows("a")) + len(train_rows("c"))


def test_fewer_updates_than_sites_needed_end_the_run(sites: Sites) -> None:
    sites.start("a", "b")
    sites.write("b", *rows("b"))

    def break_b() -> None:
        sites.stop("b")
        sites.start("b", limits={"min_examples": 1000})

    outcome = sites.run(experiment(round={"min_sites": 2}), after={1: break_b})
    assert isinstance(outcome.error, QuorumNotReached) and "fewer examples than" in str(outcome.error)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_stopped_run_resumes_with_its_rosters_and_the_same_bits(
    sites: Sites, tmp_path: Path, stopped_after: int
) -> None:
    one = experiment(rounds=4, cohort=2)
    sites.start("a", "b", "c")
    want = sites.run(one).summary.model_sha256
    stop = threading.Event()
    store = DiskRunStore.create(tmp_path / "run", "run")
    first = sites.run(one, store=store, after={stopped_after: stop.set}, stop=stop)
    assert isinstance(first.error, Interrupted)
    sites.stop("a", "b", "c")

    def come_back() -> None:
        sites.start("c", "a", "b")

    late = threading.Thread(target=come_back)
    late.start()
    again = run_again(sites, one, store)
    late.join()
    assert again.error is None and len(again.history) == 4
    assert again.summary.model_sha256 == want
    assert [line.round for line in store.rosters()] == [0], "the roster has not changed"


@pytest.mark.parametrize("selection", ["uniform", "oort", "update_norm", "local_loss"])
def test_the_choices_of_a_run_that_sites_joined_can_be_made_again(sites: Sites, tmp_path: Path, selection: str) -> None:
    sites.start("b", "c")
    given = {"mean": [0.0] * 3, "std": [1.0] * 3}
    one = experiment(rounds=4, cohort=2, selection=selection, workload={"data": given})
    store = DiskRunStore.create(tmp_path / "run", "run")
    after = {1: lambda: sites.start("a"), 2: lambda: sites.stop("c"), 3: lambda: sites.start("c")}
    assert sites.run(one, store=store, after=after).error is None
    replayed = replay_run(tmp_path / "run")
    assert [choice.choice.population for choice in replayed] == [2, 3, 3, 3]
    assert all(choice.agrees for choice in replayed)


def run_again(sites: Sites, one: Experiment, store: DiskRunStore) -> Outcome:
    return run_session(one, store, sites.access(), (), stop=threading.Event())


def test_a_resumed_run_waits_for_its_sites_but_not_for_good(
    sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites_module, "REJOIN_S", 0.2)
    stop, store = threading.Event(), DiskRunStore.create(tmp_path / "run", "run")
    sites.start("a", "b")
    sites.run(experiment(rounds=3), store=store, after={1: stop.set}, stop=stop)
    sites.stop("b")
    again = run_again(sites, experiment(rounds=3), store)
    assert again.error is None
    assert [record.num_examples for record in again.history[1:]] == [len(train_rows("a"))] * 2
    assert store.rosters()[-1].online == [0]


def test_a_refused_site_is_left_out_with_the_reason(sites: Sites) -> None:
    sites.start("a")
    sites.start("b", workloads={})
    log = EventLog()
    outcome = sites.run(experiment(rounds=1), sinks=[log])
    assert outcome.history[0].num_examples == len(train_rows("a"))
    assert any(
        event.message.startswith("site 'b' is no client of this run") and "is not allowed here" in event.message
        for event in log.of(Notice)
    )


def test_runs_at_once_have_rosters_of_their_own(sites: Sites) -> None:
    sites.start("a", "b")
    alone = sites.run(experiment()).summary.model_sha256
    found: dict[int, Any] = {}

    def go(number: int) -> None:
        found[number] = sites.run(experiment(), store=MemoryRunStore(f"run-{number}"))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {outcome.summary.model_sha256 for outcome in found.values()} == {alone}


def test_a_nodes_smallest_cohort_is_compared_with_the_sites_that_a_round_needs(sites: Sites) -> None:
    sites.start("a", "b", limits={"min_cohort": 2})
    assert sites.run(experiment(rounds=1, round={"min_sites": 2})).error is None
    outcome = sites.run(experiment(rounds=1))
    assert outcome.error is not None and "cohort has 1 clients, expected at least 2" in str(outcome.error)


GIVEN = {"mean": [0.0] * 3, "std": [1.0] * 3}
HIDES = {"withhold": {"sizes": "withheld"}}


def alone(*names: str) -> tuple[Any, float]:
    """Return the plain mean of sites' models, and of their losses with it."""
    held = {name: rows(name)[0][np.arange(len(rows(name)[0])) % 5 == 4] for name in names}
    w = np.mean([train_rows(name).mean(0) for name in names], axis=0)
    return w, float(np.mean([((x - w) ** 2).sum(1).mean() for x in held.values()]))


@pytest.mark.parametrize("hides", ["a", "c"], ids=["the first site", "the last site"])
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_site_that_withholds_its_size_makes_all_count_the_same(sites: Sites, hides: str, weighting: str) -> None:
    for name in "abc":
        sites.start(name, **(HIDES if name == hides else {}))
    log = EventLog()
    one = experiment(rounds=2, workload={"data": GIVEN}, round={"weighting": weighting, "min_sites": 3})
    outcome = sites.run(one, sinks=[log])
    assert outcome.error is None
    w, loss = alone("a", "b", "c")
    np.testing.assert_allclose(outcome.arrays["w"], w, rtol=1e-12)
    assert outcome.history[-1].evaluation is not None
    assert outcome.history[-1].evaluation["loss"] == pytest.approx(loss)
    assert outcome.history[-1].metrics["times"] == 2.0
    want = f"updates weigh the same, since {hides} withheld the number of examples"
    said = [event.message for event in log.of(Notice) if "weigh" in event.message]
    assert [message.endswith(want) for message in said] == [True] * (weighting == "examples"), said


def test_a_later_site_that_withholds_its_size_makes_all_count_the_same_from_then_on(sites: Sites) -> None:
    sites.start("a", "b")
    store, log, stop = MemoryRunStore("run"), EventLog(), threading.Event()
    one = experiment(rounds=4, workload={"data": GIVEN})
    after = {1: lambda: sites.start("c", **HIDES), 3: stop.set}
    assert isinstance(sites.run(one, store=store, after=after, sinks=[log], stop=stop).error, Interrupted)
    assert [line.settings for line in store.rosters() if line.joined] == [[], ['round.weighting="uniform"']]
    outcome = sites.run(one, store=store, sinks=[log])
    assert outcome.error is None
    both = np.concatenate([train_rows("a"), train_rows("b")]).mean(0)
    held = np.concatenate([rows(name)[0][np.arange(len(rows(name)[0])) % 5 == 4] for name in "ab"])
    w, loss = alone("a", "b", "c")
    found = [record.evaluation["loss"] for record in outcome.history if record.evaluation is not None]
    assert found == pytest.approx([float(((held - both) ** 2).sum(1).mean()), loss, loss, loss])
    np.testing.assert_allclose(outcome.arrays["w"], w, rtol=1e-12)
    assert len([event for event in log.of(Notice) if "weigh the same" in event.message]) == 1


def test_separate_updates_count_the_same_where_a_size_is_withheld() -> None:
    total = UpdateList()
    for client, size in enumerate((1, 30, 0)):
        total.add(Update(num_examples=size, metrics={"loss": Mean(2.0 * size, size)}), 1.0, client)
    reports = [
        ClientReport(client=client, num_examples=size, seconds=0.0, metrics={"loss": Mean(2.0 * size, size)})
        for client, size in enumerate((1, 30, 0))
    ]
    collected = Collected(total=total, reports=tuple(reports), counts=RoundCounts(), sampled=(0, 1, 2), superseded=())
    found = counted_alike(collected)
    assert isinstance(found.total, UpdateList)
    each: list[ClientReport | Update] = [*found.reports, *(update for _, update in found.total.updates)]
    assert [one.num_examples for one in each] == [1, 1, 0] * 2
    assert [one.metrics["loss"] for one in each] == [Mean(2.0, 1.0), Mean(2.0, 1.0), Mean(0.0, 0)] * 2
