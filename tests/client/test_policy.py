"""A node's policy: what it lets through, what it refuses and why, and what a server learns of that."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from policies import NOON, Fleet, guard
from support_paths import LINEAR, SUPPORT

from fedloom.client.policy import Policy
from fedloom.client.usage import Usage
from fedloom.core.code_names import CodeName
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, DataMissing, PolicyRefused, QuorumNotReached
from fedloom.core.events import NodeRefused
from fedloom.core.messages import Group, GroupKey, PayloadRef
from fedloom.testing.fleet import EventLog, run_on_fleet

Make = Callable[..., Experiment]


def experiment(workload: Any = "image_classification", **values: Any) -> dict[str, Any]:
    return {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": workload, **values}


def group(**fields: Any) -> Group:
    return Group(key=GroupKey("r", 1, 0, 0), jobs=(), **fields)


ALLOWED: dict[str, object] = {"workloads": {"image_classification": {}}}


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["text_classification", "flower", "os", "fedloom.workloads.image_classification", "./mine.py", str(LINEAR), ""],
    )
    def test_workloads_not_on_the_list_are_refused_before_anything_is_imported(self, tmp_path: Path, name: str) -> None:
        trap = tmp_path / "trap.py"
        trap.write_text("raise SystemExit('imported')", encoding="utf-8")
        for asked in (name, str(trap)):
            with pytest.raises(PolicyRefused):
                guard(tmp_path, **ALLOWED).admit_experiment(experiment({"name": asked}))

    def test_the_empty_policy_allows_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyRefused, match=r"allowed: none"):
            guard(tmp_path).admit_experiment(experiment())

    @pytest.mark.parametrize("section", ["strategy", "selection"])
    @pytest.mark.parametrize("name", ["os.path", "/tmp/x.py", "made_up", 7, None, {}, {"name": ["fedavg"]}])
    def test_code_that_is_not_installed_by_that_name_is_refused(self, tmp_path: Path, section: str, name: Any) -> None:
        with pytest.raises(PolicyRefused) as caught:
            guard(tmp_path, **ALLOWED).admit_experiment(experiment(**{section: name}))
        assert caught.value.kind == "code"

    @pytest.mark.parametrize("name", ["os.path", "/tmp/x.py", "made_up", 7, {}, {"name": ["mano"]}])
    def test_so_is_a_monitor(self, tmp_path: Path, name: Any) -> None:
        for monitor in (name, {"name": name}):
            with pytest.raises(PolicyRefused) as caught:
                guard(tmp_path, **ALLOWED).admit_experiment(experiment(monitor=monitor))
            assert caught.value.kind == "code"
        watched = experiment(monitor={"name": "mano", "clients": 4})
        assert guard(tmp_path, **ALLOWED).admit_experiment(watched)["monitor"] == watched["monitor"]
        assert guard(tmp_path, **ALLOWED).admit_experiment(experiment(monitor=None))["monitor"] is None

    @pytest.mark.parametrize("spec", ["os:system", "./mine.py:build", "$DATA/mine.py:build", "build"])
    def test_so_is_a_classifier(self, tmp_path: Path, spec: Any) -> None:
        own = {"workloads": {"mano": {"data": str(tmp_path)}}}
        with pytest.raises(PolicyRefused) as caught:
            guard(tmp_path, **own).admit_experiment(experiment({"name": "mano", "classifier": spec}))
        assert caught.value.kind == "code"
        (tmp_path / "mine.py").write_text("def build(shape, num_labels): ...\n", encoding="utf-8")
        allowed = guard(tmp_path, **own, code=[str(tmp_path / "mine.py")])
        code = CodeName.of(tmp_path / "mine.py", "build")
        passed = allowed.admit_experiment(experiment({"name": "mano", "classifier": str(code)}))
        copy, _, function = passed["workload"]["classifier"].rpartition(":")
        assert function == "build" and Path(copy).read_bytes() == (tmp_path / "mine.py").read_bytes()
        assert Path(copy).name == "mine.py" and Path(copy).parent.name == code.sha256

    @pytest.mark.parametrize("part", ["rule", "measure", "accumulator"])
    def test_so_are_names_in_groups(self, tmp_path: Path, part: str) -> None:
        def naming(name: str) -> Group:
            return group(rules=("fedprox", name)) if part == "rule" else group(**{part: name})

        for name in ("os.path", "/tmp/x.py", "made_up"):
            with pytest.raises(PolicyRefused, match=part):
                guard(tmp_path, **ALLOWED).admit_group(naming(name))
        guard(tmp_path, **ALLOWED, code=["os.path"]).admit_group(naming("os.path"))

    def test_parts_that_strategies_share_are_installed_with_them(self, tmp_path: Path) -> None:
        guard(tmp_path, **ALLOWED).admit_group(group(rules=("_low_rank",), accumulator="_low_rank"))

    def test_what_is_installed_and_allowed_passes_unchanged(self, tmp_path: Path) -> None:
        values = experiment({"name": "image_classification", "data": {"source": "digits"}, "model": {"hidden": [8]}})
        assert guard(tmp_path, **ALLOWED).admit_experiment(values) == values
        guard(tmp_path, **ALLOWED).admit_group(group(rules=("fedprox",)))


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        ["/etc", "/etc/passwd", "~/x", "~root", "../x", "a/b", "..", "C:\\x", "$HOME", "$DATA2", "$DATA/../x", "here"],
    )
    def test_a_server_names_no_path_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "here").mkdir()
        own = {"workloads": {"image_classification": {"data": str(tmp_path / "data")}}}
        (tmp_path / "data").mkdir()
        for settings in ({"data": {"folder": path}}, {"deep": [{"list": [path]}]}):
            with pytest.raises(PolicyRefused) as caught:
                guard(tmp_path, **own).admit_experiment(experiment({"name": "image_classification", **settings}))
            assert caught.value.kind == "data"

    def test_its_data_folder_is_the_nodes(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        own = {"workloads": {"image_classification": {"data": str(tmp_path / "data")}}}
        settings = {"name": "image_classification", "data": {"source": "npz", "file": "$DATA/x.npz"}, "root": "$DATA"}
        passed = guard(tmp_path, **own).admit_experiment(experiment(settings))
        assert passed["workload"]["data"] == {"source": "npz", "file": str(tmp_path / "data" / "x.npz")}
        assert passed["workload"]["root"] == str(tmp_path / "data")
        with pytest.raises(PolicyRefused, match="this node has no data folder"):
            guard(tmp_path, **ALLOWED).admit_experiment(experiment(settings))

    def test_a_path_below_it_may_be_written_out(self, tmp_path: Path) -> None:
        """Such as the usual folder of a packaged data set, where the owner has given just that."""
        (tmp_path / "data").mkdir()
        own = {"workloads": {"image_classification": {"data": str(tmp_path / "data")}}}
        for inside in (tmp_path / "data", tmp_path / "data" / "x.npz"):
            settings = {"name": "image_classification", "folder": str(inside)}
            assert guard(tmp_path, **own).admit_experiment(experiment(settings))["workload"] == settings
        for outside in (tmp_path, tmp_path / "data2", tmp_path / "data" / ".." / "x"):
            with pytest.raises(PolicyRefused, match=r"write it as \$DATA or \$DATA/… in the experiment"):
                guard(tmp_path, **own).admit_experiment(
                    experiment({"name": "image_classification", "folder": str(outside)})
                )

    def test_a_folder_that_is_away_is_asked_for_again(self, tmp_path: Path) -> None:
        own = {"workloads": {"image_classification": {"data": str(tmp_path / "unmounted")}}}
        with pytest.raises(PolicyRefused, match="does not exist now") as caught:
            guard(tmp_path, **own).admit_experiment(experiment({"name": "image_classification", "root": "$DATA"}))
        assert caught.value.kind == "data" and caught.value.retry_s > 0
        assert "unmounted" not in str(caught.value), "where a node keeps its data is its own affair"

    def test_nor_does_a_link_lead_out_of_it(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "out").symlink_to("/etc")
        own = {"workloads": {"image_classification": {"data": str(tmp_path / "data")}}}
        settings = {"name": "image_classification", "file": "$DATA/out/passwd"}
        with pytest.raises(PolicyRefused, match="points outside the data folder"):
            guard(tmp_path, **own).admit_experiment(experiment(settings))


class TestLimits:
    @pytest.mark.parametrize(
        ("hours", "clock", "open_"),
        [
            ("08:00-18:00", "07:59", False),
            ("08:00-18:00", "08:00", True),
            ("08:00-18:00", "18:00", False),
            ("22:00-06:00", "23:30", True),
            ("22:00-06:00", "05:59", True),
            ("22:00-06:00", "06:00", False),
        ],
    )
    def test_hours(self, tmp_path: Path, hours: str, clock: str, open_: bool) -> None:
        now = datetime.fromisoformat(f"2026-03-01T{clock}")
        made = guard(tmp_path, now, **ALLOWED, limits={"hours": [hours]})
        if open_:
            made.admit_group(group())
        else:
            with pytest.raises(PolicyRefused) as caught:
                made.admit_group(group())
            assert caught.value.kind == "hours" and caught.value.retry_s > 0

    def test_bytes_of_a_day_survive_a_restart_and_end_with_the_day(self, tmp_path: Path) -> None:
        limits = {"bytes_per_day": 1000}
        usage = Usage(tmp_path / "usage.json", lambda: NOON)
        usage.add(600)
        usage.save()
        made = guard(tmp_path, NOON, **ALLOWED, limits=limits)
        made.admit_group(group(inputs={"model": PayloadRef(size=400, sha256="0")}))
        with pytest.raises(PolicyRefused, match=r"401 bytes more would exceed the day's 1000 \(600 so far\)") as caught:
            made.admit_group(group(inputs={"model": PayloadRef(size=401, sha256="0")}))
        assert caught.value.kind == "bytes" and caught.value.retry_s == 900.0
        guard(tmp_path, NOON.replace(day=2), **ALLOWED, limits=limits).admit_group(group())

    @pytest.mark.parametrize(
        ("hook", "reason"),
        [
            (["sh", "-c", "exit 0"], None),
            (["sh", "-c", "echo on battery; echo more; exit 3"], "not now: on battery"),
            (["sh", "-c", "exit 3"], "not now: the hook exited with 3"),
            (["sleep", "9"], "not now: the hook did not finish within 0.2 s"),
            (["/no/such/hook"], "not now: the hook cannot be run"),
        ],
    )
    def test_the_hook_decides(self, tmp_path: Path, hook: list[str], reason: str | None) -> None:
        made = guard(tmp_path, **ALLOWED, limits={"hook": hook, "hook_timeout_s": 0.2, "hook_every_s": 7.0})
        if reason is None:
            made.admit_group(group())
        else:
            with pytest.raises(PolicyRefused, match=reason) as caught:
                made.admit_group(group())
            assert caught.value.retry_s == 7.0

    def test_the_hook_is_not_asked_for_every_group(self, tmp_path: Path) -> None:
        count = tmp_path / "count"
        made = guard(tmp_path, **ALLOWED, limits={"hook": ["sh", "-c", f"echo x >> {count}"]})
        for _ in range(5):
            made.admit_group(group())
        assert count.read_text(encoding="utf-8") == "x\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workload = 1", "workload"),
        ("[limits]\nhours = ['25:00-26:00']", "limits.hours.0"),
        ("[limits]\nthreads = 0", "limits.threads"),
        ("not toml", "cannot be read as a policy"),
        ("[workloads.x]\nfolder = 'y'", "workloads.x.folder"),
    ],
)
def test_a_policy_that_is_none_is_said_to_be_so(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "policy.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        Policy.load(tmp_path / "policy.toml")


OPEN: dict[str, object] = {"workloads": {str(LINEAR): {}}}


def test_a_refused_job_goes_to_another_node_and_the_record_says_why(tmp_path: Path, linear: Make) -> None:
    listener = EventLog()
    want = run_on_fleet(linear()).summary.model_sha256
    outcome = Fleet(tmp_path, willing=OPEN, unwilling={}).run(linear(), listener)
    assert outcome.error is None and outcome.summary.model_sha256 == want
    assert all(record.refusals.keys() <= {"unwilling"} for record in outcome.history)
    reported = listener.of(NodeRefused)
    assert reported and {(event.node, event.kind) for event in reported} == {("unwilling", "workload")}
    assert all("is not allowed here (allowed: none)" in event.reason for event in reported)


def test_where_every_node_refuses_the_run_fails_and_says_why(tmp_path: Path, linear: Make) -> None:
    outcome = Fleet(tmp_path, one={}, two={"workloads": {"image_classification": {}}}).run(linear())
    assert isinstance(outcome.error, QuorumNotReached)
    said = [
        f"  {node}: refused: workload {str(CodeName.of(LINEAR))!r} is not allowed here (allowed: {reported})"
        for node, reported in (("one", "none"), ("two", "image_classification"))
    ]
    assert sorted(str(outcome.error).splitlines()[1:]) == said


def test_a_workload_gets_as_many_helpers_as_a_node_allows_or_goes_to_another(tmp_path: Path) -> None:
    """None where nothing is said."""
    name = str(SUPPORT / "helping.py")
    helping = Experiment.parse(
        {"rounds": 2, "clients": 4, "strategy": "fedavg", "workload": {"name": name, "helpers": 2, "size": 8}}
    )
    two = {"workloads": {name: {}}, "limits": {"helpers": 2}}
    want = Fleet(tmp_path, two=two).run(helping)
    listener = EventLog()
    outcome = Fleet(tmp_path, two=two, one={**two, "limits": {"helpers": 1}}, none={"workloads": {name: {}}}).run(
        helping, listener
    )
    assert outcome.error is None and outcome.summary.model_sha256 == want.summary.model_sha256
    reported = {(event.node, event.kind, event.reason) for event in listener.of(NodeRefused)}
    reason = "the workload requests a helper process beyond the {} allowed here (limits.helpers)"
    assert reported and reported <= {("one", "helpers", reason.format(1)), ("none", "helpers", reason.format(0))}
    refused = Fleet(tmp_path, one={**two, "limits": {"helpers": 1}}).run(helping)
    assert isinstance(refused.error, QuorumNotReached) and reason.format(1) in str(refused.error)


def test_not_now_is_asked_again(tmp_path: Path, linear: Make) -> None:
    """A hook that says no at first: the work waits, and is done when it says yes."""
    flag = tmp_path / "ready"
    hook = ["sh", "-c", f"test -e {flag} || {{ touch {flag}; echo charging; exit 1; }}"]
    outcome = Fleet(tmp_path, shy={**OPEN, "limits": {"hook": hook, "hook_every_s": 0.1}}).run(linear(rounds=2))
    assert outcome.error is None and outcome.summary.status == "done"


def test_failures_keep_their_details_at_home(tmp_path: Path, linear: Make) -> None:
    settings = {"workload": {"fail_clients": [1]}, "round": {"quorum_fraction": 0.5}, "cohort": 12}
    for policy, reported in ((OPEN, False), ({**OPEN, "tracebacks": True}, True)):
        outcome = Fleet(tmp_path, node=policy).run(linear(rounds=1, **settings))
        (failure,) = outcome.history[0].failures
        assert (failure.client, failure.error, failure.stage) == (1, "RuntimeError", "train")
        assert ("broken sensor" in failure.message) is reported
        assert bool(failure.traceback) is reported


def test_a_silent_node_is_named_where_its_data_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    policy = {"workloads": {"image_classification": {"data": str(tmp_path / "empty")}}}
    workload = {"name": "image_classification", "data": {"source": "idx", "folder": "$DATA"}}
    outcome = Fleet(tmp_path, node=policy).run(
        Experiment.parse({"rounds": 1, "clients": 2, "strategy": "fedavg", "workload": workload})
    )
    assert isinstance(outcome.error, DataMissing)
    text = str(outcome.error)
    assert "stage load on node" in text and "see its log" in text and str(tmp_path) not in text
