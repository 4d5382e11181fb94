"""One bad client does not cost the run where the quorum allows it, and is named, in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedloom import api
from fedloom.api import RunResult
from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, ClientFailed, PluginInvalid
from fedloom.core.seeds import generator
from fedloom.server.fleet import housekeeper

Make = Callable[..., Experiment]
BAD = 1
"""The client that misbehaves in every test."""
KINDS = {
    "fail_clients": ("train", "RuntimeError"),
    "exit_clients": ("train", "SystemExit"),
    "wide_clients": ("outgoing", "fedloom.core.errors.BadUpdate"),
    "wrong_dtype_clients": ("outgoing", "fedloom.core.errors.BadUpdate"),
    "nan_clients": ("aggregate", "fedloom.core.errors.BadUpdate"),
}
"""Stage and error of each fault."""


@pytest.fixture
def run(linear: Make) -> Callable[..., RunResult]:
    def run(kind: str, group_size: int = 1, **runtime: object) -> RunResult:
        return api.run(
            linear(
                rounds=2,
                clients=4,
                cohort=4,
                round={"quorum_fraction": 0.5, "group_size": group_size},
                workload={kind: (BAD,)},
                runtime=runtime or {"name": "inline"},
            ),
            keep=False,
        )

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runtime", ["inline", "process"])
@pytest.mark.parametrize("group_size", [1, 4])
def test_the_round_is_the_others(run: Callable[..., RunResult], kind: str, runtime: str, group_size: int) -> None:
    settings = {"name": runtime, **({"workers": 1} if runtime == "process" else {})}
    result = run(kind, group_size, **settings)
    reported = [(f.client, f.stage, f.error) for record in result.history for f in record.failures]
    assert reported == [(BAD, *KINDS[kind])] * 2
    assert result.summary.model_sha256 == run("fail_clients", group_size).summary.model_sha256


def test_a_client_that_ends_its_process_is_given_up_on_not_the_run(run: Callable[..., RunResult]) -> None:
    result = run("die_clients", name="process", workers=2)
    reported = [(f.client, f.stage, f.message) for record in result.history for f in record.failures]
    assert [(client, stage) for client, stage, _ in reported] == [(BAD, "worker")] * 2
    assert all("(3 attempts)" in message for _, _, message in reported)
    assert result.summary.model_sha256 == run("fail_clients").summary.model_sha256


@pytest.mark.parametrize(("kind", "error"), [("exit_clients", ClientFailed), ("wrong_dtype_clients", ClientFailed)])
def test_without_a_quorum_the_error_names_the_client(
    linear: Make, kind: str, error: type[ClientFailed | BadUpdate]
) -> None:
    with pytest.raises(error, match=f"client {BAD}, round 1"):
        api.run(linear(rounds=1, clients=4, cohort=4, workload={kind: (BAD,)}), keep=False)


STRATEGY = """
from dataclasses import replace

from fedloom.core.config import PluginSettings
from fedloom.strategies.fedavg.strategy import FedAvg, GlobalModel


class Config(PluginSettings):
    widen: bool = False


class Plain(FedAvg):
    def __init__(self, config):
        self._config = config

    def plan(self, state, context):
        return replace(super().plan(state, context), updates="accumulator")

    def finish(self, state, total, context):
        model = total.value()["model"]
        return GlobalModel({name: array.astype("f8") if self._config.widen else array for name, array in model.items()})


def build_strategy(config, experiment):
    return Plain(config)
"""


def test_a_sum_that_fits_no_other_is_its_clients_failure(linear: Make, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(STRATEGY, encoding="utf-8")
    last = int(generator(1, "selection", 1).choice(4, 4, replace=False)[-1])

    def run(kind: str, quorum: float) -> RunResult:
        settings = {"rounds": 1, "clients": 4, "cohort": 4, "round": {"quorum_fraction": quorum, "group_size": 1}}
        return api.run(linear(**settings, strategy=str(tmp_path / "plain.py"), workload={kind: (last,)}), keep=False)

    result = run("wide_clients", 0.5)
    (failure,) = result.history[0].failures
    assert (failure.client, failure.stage) == (last, "aggregate") and "two partial sums differ in" in failure.message
    assert result.summary.model_sha256 == run("fail_clients", 0.5).summary.model_sha256
    with pytest.raises(BadUpdate, match="round 1, node 'inline': two partial sums differ"):
        run("wide_clients", 1.0)


def test_a_strategy_that_changes_the_models_dtype_is_stopped_and_says_which_array(linear: Make, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(STRATEGY, encoding="utf-8")
    with pytest.raises(PluginInvalid, match=r"array 'b' is float64 .*, expected float32 .*astype\(np\.float32\)"):
        api.run(linear(strategy={"name": str(tmp_path / "plain.py"), "widen": True}), keep=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_that_never_returns_does_not_block_the_run(
    run: Callable[..., RunResult], linear: Make, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(housekeeper, "STUCK_S", 0.2)
    settings = {"rounds": 1, "clients": 4, "cohort": 4, "round": {"quorum_fraction": 0.5, "deadline_s": 1.5}}
    last = int(generator(1, "selection", 1).choice(4, 4, replace=False)[-1])
    result = api.run(
        linear(**settings, workload={"hang_clients": (last,)}, runtime={"name": "process", "workers": workers}),
        keep=False,
    )
    (record,) = result.history
    assert [(f.client, f.stage) for f in record.failures] == [(last, "deadline")]
    assert record.evaluation and record.timing.total_s < 30
    here = api.run(linear(**settings, workload={"fail_clients": (last,)}), keep=False)
    assert result.summary.model_sha256 == here.summary.model_sha256


def test_another_node_makes_the_initial_model_when_the_first_does_not_return(linear: Make, tmp_path: Path) -> None:
    settings = {"rounds": 1, "clients": 4, "cohort": 4, "round": {"deadline_s": 2.0}}
    workload = {"hang_init_once": str(tmp_path / "hangs")}
    result = api.run(linear(**settings, workload=workload, runtime={"name": "process", "workers": 2}), keep=False)
    assert (tmp_path / "hangs").exists()
    assert result.summary.model_sha256 == api.run(linear(**settings), keep=False).summary.model_sha256
