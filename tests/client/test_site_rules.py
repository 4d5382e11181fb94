"""Rules of a site: what it counts, whom it asks, what it withholds, and what it refuses because of that."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from policies import NOON, guard

from fedloom.client.approval import Approval, Approver
from fedloom.client.policy import Policy
from fedloom.client.usage import Usage
from fedloom.client.withholding import Withhold
from fedloom.core.data_schema import check_schema
from fedloom.core.errors import ConfigError, DataDiffers, PolicyRefused
from fedloom.core.messages import Group, GroupKey, RunSpec
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Job, Mean, Update

ALLOWED: dict[str, Any] = {"workloads": {"image_classification": {}}}


def experiment(**values: Any) -> dict[str, Any]:
    return {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": "image_classification", **values}


def group(run: str = "r", round: int = 1, *, kinds: tuple[str, ...] = ("train",), clients: int = 9) -> Group:
    jobs = tuple(Job(round=round, client=index, kind=kind, inputs=()) for index, kind in enumerate(kinds))
    return Group(key=GroupKey(run, round, 0, 0), jobs=jobs, clients=clients)


def refused(call: Callable[[], object]) -> PolicyRefused:
    with pytest.raises(PolicyRefused) as caught:
        call()
    return caught.value


class TestADay:
    def test_runs_are_counted_over_restarts_and_forgotten_the_next_day(self, tmp_path: Path) -> None:
        limits = {"limits": {"runs_per_day": 2}}
        first = guard(tmp_path, NOON, **ALLOWED, **limits)
        for run, round in (("a", 0), ("a", 1), ("b", 1), ("a", 2)):
            first.admit_group(group(run, round))
        again = guard(tmp_path, NOON.replace(hour=23), **ALLOWED, **limits)
        again.admit_group(group("b", 7))
        said = refused(lambda: again.admit_group(group("c")))
        assert "worked for 2 runs today" in str(said) and said.kind == "runs" and said.retry_s == 900.0
        late = guard(tmp_path, datetime(2026, 3, 1, 23, 59, 50), **ALLOWED, **limits)
        assert refused(lambda: late.admit_group(group("c"))).retry_s == 10.0
        guard(tmp_path, NOON.replace(day=2), **ALLOWED, **limits).admit_group(group("c"))

    def test_rounds_are_counted_once_each_and_the_initial_model_is_none(self, tmp_path: Path) -> None:
        limits = {"limits": {"rounds_per_day": 3}}
        made = guard(tmp_path, NOON, **ALLOWED, **limits)
        for run, round in (("a", 0), ("a", 1), ("a", 1), ("b", 1), ("a", 2), ("b", 0)):
            made.admit_group(group(run, round))
        for each in (made, guard(tmp_path, NOON, **ALLOWED, **limits)):
            assert refused(partial(each.admit_group, group("a", 3))).kind == "rounds"
            each.admit_group(group("b", 1))

    def test_what_is_refused_for_another_reason_is_not_counted(self, tmp_path: Path) -> None:
        limits = {"limits": {"runs_per_day": 1, "hours": ["01:00-02:00"]}}
        assert refused(lambda: guard(tmp_path, NOON, **ALLOWED, **limits).admit_group(group("a"))).kind == "hours"
        guard(tmp_path, NOON.replace(hour=1), **ALLOWED, **limits).admit_group(group("b"))

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"day": 7}', '{"day": "2026-03-01", "bytes": 5, "runs": 3}'])
    def test_a_damaged_count_begins_anew(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "usage.json").write_text(text, encoding="utf-8")
        usage = Usage(tmp_path / "usage.json", lambda: NOON)
        usage.begin("a", 1)
        kept = json.loads((tmp_path / "usage.json").read_text(encoding="utf-8"))
        assert (kept["day"], kept["runs"], kept["rounds"]) == ("2026-03-01", ["a"], ["a/1"])


class TestCompany:
    @pytest.mark.parametrize(
        ("values", "size"),
        [
            ({"clients": 9, "cohort": 4}, 4),
            ({"clients": 3}, 3),
            ({}, 1),
            ({"clients": "nodes"}, 1),
            ({"clients": "nodes", "round": {"min_sites": 5}}, 5),
            ({"clients": ["a", "b"]}, 2),
            ({"clients": ["a", "b", "c"], "round": {"min_sites": 2}}, 2),
        ],
    )
    def test_the_stated_cohort(self, tmp_path: Path, values: dict[str, Any], size: int) -> None:
        guard(tmp_path, **ALLOWED, limits={"min_cohort": size}).admit_experiment(experiment(**values))
        fewer = guard(tmp_path, **ALLOWED, limits={"min_cohort": size + 1})
        said = refused(lambda: fewer.admit_experiment(experiment(**values)))
        assert f"has {size} clients, expected at least {size + 1}" in str(said)

    def test_no_exchange_of_one_site_but_the_initial_model(self, tmp_path: Path) -> None:
        made = guard(tmp_path, **ALLOWED, limits={"alone": False})
        made.admit_group(group(kinds=("train", "train"), clients=3))
        for kind in ("init", "describe"):
            made.admit_group(group(kinds=(kind,), clients=1))
        for kinds, clients in ((("train",), 1), (("train", "train"), 2), (("evaluate",), 0), (("init", "train"), 2)):
            said = refused(partial(made.admit_group, group(kinds=kinds, clients=clients)))
            assert said.kind == "alone" and said.retry_s == 0 and "takes part only with others" in str(said)
        guard(tmp_path, **ALLOWED).admit_group(group(clients=1))


class TestWhoMayRunWhat:
    def test_a_workload_may_be_for_some_submitters(self, tmp_path: Path) -> None:
        policy = {"workloads": {"image_classification": {"submitters": ["ann"], "roles": ["user"]}, "causal_lm": {}}}
        made = guard(tmp_path, **policy)
        made.admit_run(RunSpec(run_id="r", experiment=experiment(), submitter_name="ann", submitter_role="user"))
        for name, role in (("bob", "user"), ("ann", "admin"), ("", "")):
            spec = RunSpec(run_id="r", experiment=experiment(), submitter_name=name, submitter_role=role)
            said = refused(partial(made.admit_run, spec))
            assert said.kind == "submitter" and "runs of workload 'image_classification' by" in str(said)
        made.admit_submitter("bob", "user", "causal_lm")


class TestApproval:
    def approver(self, tmp_path: Path, code: str, **options: Any) -> tuple[Approver, list[float], Path]:
        """A command that notes what it reads, and a clock."""
        log = tmp_path / "log"
        text = f"import sys; open({str(log)!r}, 'a').write(sys.stdin.read() + chr(10)); {code}"
        now = [0.0]
        settings = Approval(command=(sys.executable, "-c", text), **options)
        return Approver(settings, lambda: now[0]), now, log

    def spec(self, **values: Any) -> RunSpec:
        return RunSpec(run_id="r", experiment=experiment(**values), submitter_name="ann", submitter_role="user")

    def test_it_is_told_what_the_run_is_and_asked_once(self, tmp_path: Path) -> None:
        made, _, log = self.approver(tmp_path, "sys.exit(0)")
        for _ in range(3):
            made.admit(self.spec())
        (asked,) = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        assert asked == {"run": "r", "submitter": "ann", "role": "user", "experiment": experiment()}
        made.admit(self.spec(rounds=2))
        assert len(log.read_text(encoding="utf-8").splitlines()) == 2, "another experiment is another question"

    def test_a_no_is_final_until_it_is_asked_again(self, tmp_path: Path) -> None:
        made, now, log = self.approver(tmp_path, "print('not this one'); sys.exit(3)", again_s=60.0)
        for seconds, asked in ((0.0, 1), (59.0, 1), (60.0, 2)):
            now[0] = seconds
            said = refused(lambda: made.admit(self.spec()))
            assert (said.kind, said.retry_s, str(said)) == ("approval", 0.0, "the run is not approved: not this one")
            assert len(log.read_text(encoding="utf-8").splitlines()) == asked

    def test_a_decision_may_come_later(self, tmp_path: Path) -> None:
        made, _, _ = self.approver(tmp_path, "print('the board meets on Friday'); sys.exit(75)", again_s=60.0)
        said = refused(lambda: made.admit(self.spec()))
        assert said.retry_s == 60.0 and str(said) == "the run is not approved yet: the board meets on Friday"

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            (("/no/such/command",), "the approval command cannot be run: No such file or directory"),
            ((sys.executable, "-c", "import time; time.sleep(9)"), "did not finish within 0.2 s"),
            ((sys.executable, "-c", "raise SystemExit(2)"), "the approval command exited with 2"),
        ],
    )
    def test_one_that_fails_approves_nothing(self, command: tuple[str, ...], reason: str) -> None:
        made = Approver(Approval(command=command, timeout_s=0.2 if "sleep" in command[-1] else 20.0))
        assert reason in str(refused(lambda: made.admit(self.spec())))

    def test_without_a_command_all_is_approved(self) -> None:
        Approver(Approval()).admit(self.spec())


INFO = WorkloadInfo(
    data={
        "name": "d", "kind": "real", "sha256": "ab", "num_train": 30, "num_test": 7, "mean": [0.5], "std": [0.2],
        "oldest": 93.0, "shape": [1, 8, 8], "schema": {"shape": [1, 8, 8], "mean": [0.5], "std": [0.2], "classes": "x"},
    },
    client_sizes=[30], label_counts=[[19, 11]], label_names=["benign", "sha256:12"],
)  # fmt: skip


class TestWithholding:
    def test_without_a_rule_all_of_it_leaves(self) -> None:
        assert Withhold().described(INFO) is INFO and not Withhold().any
        update = Update(num_examples=30, metrics={"loss": Mean(60.0, 30.0)})
        assert Withhold().update(update) is update

    @pytest.mark.parametrize(
        ("withhold", "changed"),
        [
            ({"label_counts": True}, {"label_counts": ()}),
            ({"sizes": "bucketed"}, {"client_sizes": [32], "label_counts": [[32, 16]], "num_train": 32, "num_test": 8}),
            ({"sizes": "withheld"}, {"client_sizes": (), "label_counts": (), "num_train": None, "num_test": None}),
            ({"class_names": True}, {"label_names": ["class 0", "class 1"], "schema": ["shape", "mean", "std"]}),
            ({"statistics": True}, {"mean": None, "std": None, "schema": ["shape", "classes"]}),
            ({"digests": True}, {"sha256": None, "schema": ["shape", "mean", "std"]}),
        ],
    )
    def test_each_part_alone(self, withhold: dict[str, Any], changed: dict[str, Any]) -> None:
        """And a fact that is not known to be harmless never leaves with any of them."""
        before, after = asdict(INFO), asdict(Withhold.model_validate(withhold).described(INFO))
        for name in ("client_sizes", "label_counts", "label_names"):
            assert list(after[name]) == list(changed.get(name, before[name])), name
        facts = dict(after["data"])
        assert "oldest" not in facts
        for name in ("name", "kind", "sha256", "num_train", "num_test", "mean", "std", "shape"):
            assert facts.get(name) == changed.get(name, before["data"][name]), name
        hidden = facts["schema"].pop("withheld", [])
        assert list(facts["schema"]) == changed.get("schema", list(before["data"]["schema"]))
        assert set(hidden) == set(before["data"]["schema"]) - set(facts["schema"])

    @pytest.mark.parametrize(
        ("sizes", "examples", "mean"),
        [("bucketed", 32, Mean(64.0, 32.0)), ("withheld", 1, Mean(2.0, 1.0)), ("exact", 30, Mean(60.0, 30.0))],
    )
    def test_sizes_leave_neither_as_a_number_nor_as_a_weight(self, sizes: str, examples: int, mean: Mean) -> None:
        metrics = {"loss": Mean(60.0, 30.0), "nothing": Mean(0.0, 0.0)}
        after = Withhold.model_validate({"sizes": sizes}).update(Update(num_examples=30, metrics=metrics))
        assert (after.num_examples, after.metrics["loss"], after.metrics["nothing"]) == (examples, mean, Mean(0.0, 0.0))

    def test_buckets(self) -> None:
        made = Withhold(sizes="bucketed")
        assert [made.size(n) for n in (0, 1, 2, 3, 4, 5, 1000, 1024, 1025)] == [0, 1, 2, 4, 4, 8, 1024, 1024, 2048]

    def test_what_a_site_withholds_is_not_compared_at_another(self) -> None:
        data = {"label_names": ["a", "b"], "shape": [1, 8, 8], "mean": [0.9], "std": [0.2]}
        withheld = {"shape": [1, 8, 8], "withheld": ["classes", "mean", "std"]}
        check_schema(withheld, data, "r")
        with pytest.raises(DataDiffers):
            check_schema({**withheld, "shape": [3, 8, 8]}, data, "r")
        with pytest.raises(DataDiffers):
            check_schema({"shape": [1, 8, 8], "classes": "y"}, data, "r")


NEEDS: dict[str, dict[str, dict[str, Any]]] = {
    "sizes": {"data_size": {}, "power_of_choice": {}, "firing_credit": {"candidate_draw": "examples"}},
    "label_counts": {"label_oracle": {}, "fed_cbs": {}, "predicted_credit": {}},
    "firing_rates": {"firing_credit": {}, "spike_activity": {}, "predicted_credit": {"credit": "change"}},
}


@pytest.mark.parametrize(("fact", "selection"), [(fact, name) for fact, names in NEEDS.items() for name in names])
def test_a_selection_that_needs_what_is_withheld_is_refused(tmp_path: Path, fact: str, selection: str) -> None:
    table = {"name": selection, **NEEDS[fact][selection]}
    withhold = {"sizes": "withheld"} if fact == "sizes" else {fact: True}
    values = experiment(selection=table, round={"weighting": "uniform"}, clients=9)
    said = refused(lambda: guard(tmp_path, **ALLOWED, withhold=withhold).admit_experiment(values))
    assert f"selection {selection!r} needs {fact.replace('_', ' ')} of clients, which this node withholds" in str(said)
    guard(tmp_path, **ALLOWED, withhold={"digests": True}).admit_experiment(values)
    guard(tmp_path, **ALLOWED, withhold=withhold).admit_experiment({**values, "selection": "uniform"})


@pytest.mark.parametrize(
    ("measure", "fact"),
    [("predicted_credit", "label_counts"), ("predicted_credit", "firing_rates"), ("spike_activity", "firing_rates"),
     ("firing_credit", "firing_rates")],
)  # fmt: skip
def test_nor_does_a_group_name_a_measure_that_the_run_did_not(tmp_path: Path, measure: str, fact: str) -> None:
    made = guard(tmp_path, **ALLOWED, withhold={fact: True})
    said = refused(lambda: made.admit_group(replace(group(), measure=measure)))
    assert f"measure {measure!r} may report {fact.replace('_', ' ')}" in str(said)
    made.admit_group(replace(group(), measure="update_norm"))
    guard(tmp_path, **ALLOWED).admit_group(replace(group(), measure=measure))


def test_withheld_sizes_need_uniform_weights(tmp_path: Path) -> None:
    made = guard(tmp_path, **ALLOWED, withhold={"sizes": "withheld"})
    for table in ({}, {"weighting": "examples"}):
        said = refused(partial(made.admit_experiment, experiment(clients=9, round=table)))
        assert "set round.weighting = 'uniform'" in str(said)
    made.admit_experiment(experiment(clients=9, round={"weighting": "uniform"}))
    made.admit_experiment(experiment(clients=9, cohort=1))
    for sites in ("nodes", ["north", "south"]):
        made.admit_experiment(experiment(clients=sites))  # the server makes their weights uniform
    bucketed = guard(tmp_path, **ALLOWED, withhold={"sizes": "bucketed"})
    bucketed.admit_experiment(experiment(clients=9))


@pytest.mark.parametrize(
    "text",
    ['[withhold]\nsizes = "some"', "[limits]\nruns_per_day = 0", "[approval]\ncommand = 7", "share_local_model = 3",
     "[withhold]\nlabels = true", "[limits]\nalone = 7"],
)  # fmt: skip
def test_a_wrong_rule_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.toml").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=str(tmp_path / "policy.toml")):
        Policy.load(tmp_path / "policy.toml")
