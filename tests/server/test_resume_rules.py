"""A run folder belongs to one process and one experiment; more rounds equal the longer run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.continuation import check_rounds
from fedloom.core.errors import ConfigError, RunExists
from fedloom.server.store.disk_run_store import DiskRunStore

Make = Callable[..., Experiment]
HOLD = (
    "import sys, pathlib; from fedloom.server.store.claim import claimed\n"
    "with claimed(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_folder_in_use_is_refused_and_free_again_when_its_process_is_killed(linear: Make, tmp_path: Path) -> None:
    api.run(linear(rounds=1), out=tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RunExists, match=f"another process uses the run folder {tmp_path / 'run'}"):
        api.resume(tmp_path / "run")
    assert DiskRunStore.open(tmp_path / "run").rounds(), "it can be read all the same"
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    assert api.resume(tmp_path / "run").summary.status == "done"


def test_nor_can_this_process_resume_it_twice_at_a_time(linear: Make, tmp_path: Path) -> None:
    api.run(linear(rounds=1), out=tmp_path / "run")
    with DiskRunStore.open(tmp_path / "run").claimed(), pytest.raises(RunExists):
        api.resume(tmp_path / "run")


@pytest.mark.parametrize("strategy", ["fedavg", {"name": "server_opt", "optimizer": "adam"}])
def test_more_rounds_equal_the_longer_run(linear: Make, tmp_path: Path, strategy: object) -> None:
    api.run(linear(rounds=2, strategy=strategy), out=tmp_path / "run")
    resumed = api.resume(tmp_path / "run", overrides=["rounds=5"])
    longer = api.run(linear(rounds=5, strategy=strategy), keep=False)
    assert resumed.summary.model_sha256 == longer.summary.model_sha256
    assert [record.round for record in resumed.history] == [1, 2, 3, 4, 5]
    assert [record.metrics for record in resumed.history] == [record.metrics for record in longer.history]
    assert DiskRunStore.open(tmp_path / "run").experiment().rounds == 5


@pytest.mark.parametrize("key", ["seed=3", "strategy.name=fedprox", "workload.steps=9", "round.weighting=uniform"])
def test_what_would_be_another_experiment_is_named_and_rejected(linear: Make, tmp_path: Path, key: str) -> None:
    api.run(linear(rounds=1), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=rf"^{key.partition('=')[0]}: a run resumes with its original settings"):
        api.resume(tmp_path / "run", overrides=[key])


def test_what_is_no_part_of_the_result_may_change(linear: Make, tmp_path: Path) -> None:
    api.run(linear(rounds=1), out=tmp_path / "run")
    overrides = ["name=2024", "checkpoint.keep=3", "fleet.labels.site=a", "runtime.workers=1"]
    api.resume(tmp_path / "run", overrides=overrides)
    kept = DiskRunStore.open(tmp_path / "run").experiment()
    assert (kept.name, kept.checkpoint.keep, kept.fleet.labels) == ("2024", 3, {"site": "a"})
    assert kept.runtime.workers is None, "a session's own"


def test_fewer_rounds_than_are_done_are_refused(linear: Make, tmp_path: Path) -> None:
    api.run(linear(rounds=3), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="rounds: expected at least 3, which are done, got 2"):
        api.resume(tmp_path / "run", overrides=["rounds=2"])


STRATEGY = """
from fedloom.core.config import PluginSettings
from fedloom.strategies.fedavg.strategy import FedAvg


class Config(PluginSettings):
    pass


def build_strategy(config, experiment):
    experiment.rounds_known("strategy 'annealed'")
    return FedAvg()
"""


def test_where_the_state_depends_on_the_number_of_rounds_it_says_so(linear: Make, tmp_path: Path) -> None:
    (tmp_path / "annealed.py").write_text(STRATEGY, encoding="utf-8")
    api.run(linear(rounds=1, strategy=str(tmp_path / "annealed.py")), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"depends on its number of rounds.*annealed.*--as-continuation"):
        api.resume(tmp_path / "run", overrides=["rounds=2"])
    assert len(api.resume(tmp_path / "run", overrides=["rounds=2"], as_continuation=True).history) == 2


@pytest.mark.parametrize("shape", ["cosine", "linear", "drops", "constant"])
def test_a_schedule_over_all_rounds_is_refused_too(tmp_path: Path, shape: str) -> None:
    schedule = {"shape": shape, "drop_at": [0.5] if shape == "drops" else [], "warmup": 2}
    table = {"name": "image_classification", "training": {"round_schedule": schedule}}
    settings = {"rounds": 4, "clients": 2, "strategy": "fedavg", "workload": table}
    DiskRunStore.create(tmp_path / "run", "run").begin(Experiment.parse(settings))
    if shape == "constant":
        check_rounds(Experiment.parse(settings | {"rounds": 5}), 0, as_continuation=False)
        return
    with pytest.raises(ConfigError, match=rf"depends on its number of rounds.*round_schedule.shape = '{shape}'"):
        api.resume(tmp_path / "run", overrides=["rounds=5"])
    assert DiskRunStore.open(tmp_path / "run").experiment().rounds == 4, "nothing was changed"
    check_rounds(Experiment.parse(settings | {"rounds": 5}), 0, as_continuation=True)


WORKLOAD = """
from fedloom.testing import linear
from fedloom.testing.linear import Config as Config


def build_workload(config, experiment):
    experiment.rounds_known("workload 'annealed'")
    return linear.build_workload(config, experiment)
"""


def test_a_workload_of_the_users_that_needs_the_number_says_so(linear: Make, tmp_path: Path) -> None:
    (tmp_path / "annealed.py").write_text(WORKLOAD, encoding="utf-8")
    api.run(linear(rounds=1).override([f"workload.name={tmp_path / 'annealed.py'}"]), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"depends on its number of rounds.*annealed.*--as-continuation"):
        api.resume(tmp_path / "run", overrides=["rounds=2"])
    assert len(api.resume(tmp_path / "run", overrides=["rounds=2"], as_continuation=True).history) == 2
