"""A group's jobs, one after the other: sums, failures of single clients, and what is told of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from payload_channel import PayloadChannel
from support_paths import LINEAR

from fedloom.client.client_stores import ServerStore
from fedloom.client.executor import Executor
from fedloom.client.setup import NodeSetup
from fedloom.core import registry
from fedloom.core.accumulators import RunningMean
from fedloom.core.errors import ClientFailed
from fedloom.core.frames import encode
from fedloom.core.messages import Group, GroupKey, GroupResult, PayloadRef, RunSpec
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import UNTRAINED, Job, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator
from fedloom.proto.v1 import codec

MODEL = Record({"model": {"w": np.ones(3, np.float32), "b": np.zeros((), np.float32)}})


def work(
    *clients: int,
    executor: Executor | None = None,
    accumulator: str = "mean",
    workload: Mapping[str, object] | None = None,
) -> GroupResult:
    executor = executor or Executor(PayloadChannel(), "n")
    spec = {"rounds": 3, "clients": 9, "strategy": "fedavg"}
    settings = {"name": str(LINEAR), "features": 3, **(workload or {})}
    executor.prepare(RunSpec(run_id="run", experiment={**spec, "workload": settings}))
    jobs = tuple(Job(round=1, client=client) for client in clients)
    inputs = {"model": PayloadRef(size=100, record=MODEL)}
    return executor.work(Group(key=GroupKey("run", 1, 0, 0), jobs=jobs, inputs=inputs, accumulator=accumulator))


def mean(result: GroupResult) -> np.ndarray:
    assert result.total is not None and result.total.record is not None
    return RunningMean.from_record(result.total.record).value()["model"]["w"]


@pytest.mark.parametrize("kind", ["nan_clients", "wide_clients", "fail_clients"])
def test_a_bad_client_leaves_exactly_the_sum_of_the_others(kind: str) -> None:
    bad = work(1, 2, 3, 4, workload={kind: (3,)})
    good = work(1, 2, 4)
    np.testing.assert_array_equal(mean(bad), mean(good))
    assert [report.client for report in bad.reports] == [1, 2, 4]
    (failure,) = bad.failures
    assert (failure.client, failure.round, failure.node) == (3, 1, "n")
    stages = {"fail_clients": "train", "wide_clients": "outgoing", "nan_clients": "aggregate"}
    assert failure.stage == stages[kind]
    assert failure.traceback and failure.seconds > 0 and failure.bytes_down == 100


def test_a_bad_first_client_does_not_decide_the_shapes() -> None:
    result = work(1, 2, 3, workload={"wide_clients": (1,)})
    (failure,) = result.failures
    assert failure.client == 1 and "has shape (4,), the global model has (3,)" in failure.message
    np.testing.assert_array_equal(mean(result), mean(work(2, 3)))


def test_a_group_of_failures_has_no_sum() -> None:
    result = work(1, 2, workload={"fail_clients": (1, 2)})
    assert result.total is None and not result.reports and len(result.failures) == 2
    assert result.failures[1].error == "RuntimeError" and result.failures[1].message == "client 2 has a broken sensor"


def test_in_debug_the_exception_comes_out_with_client_round_and_stage() -> None:
    with pytest.raises(
        ClientFailed, match="client 2, round 1, stage train on n: RuntimeError: client 2 has a broken"
    ) as caught:
        work(1, 2, executor=Executor(PayloadChannel(), "n", NodeSetup(debug=True)), workload={"fail_clients": (2,)})
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_reports_say_what_one_client_alone_would_send() -> None:
    (report,) = work(5).reports
    update = Record({"model": {"w": np.ones(3, np.float32), "b": np.zeros((), np.float32)}})
    assert (report.params_down, report.params_up) == (4, 4)
    assert (report.bytes_down, report.bytes_up) == (100, len(encode(update)))
    assert report.num_examples == 20 + 5 % 7


class Odd:
    """A workload that answers what the test wants."""

    def __init__(self, **fields: Any) -> None:
        self._fields = {"num_examples": 1, "groups": MODEL.groups, **fields}

    def describe(self) -> WorkloadInfo:
        return WorkloadInfo(data={})

    def init(self, rng: np.random.Generator) -> Record:
        return MODEL

    def shard(self, client: int) -> None:
        return None

    def held_out(self, part: int, parts: int) -> None:
        return None

    def train(self, job: Job, inputs: Any, shard: Any, rule: Any, rng: np.random.Generator) -> Update:
        return Update(**self._fields)

    def evaluate(self, inputs: Any, shard: Any) -> Metrics:
        return {}


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(**fields: Any) -> None:
        module = registry.part("workloads", str(LINEAR), "workload")
        monkeypatch.setattr(module, "build_workload", lambda config, experiment: Odd(**fields))

    return use


@pytest.mark.parametrize("accumulator", ["mean", "separate"])
def test_numbers_of_numpy_are_numbers(odd: Any, accumulator: str) -> None:
    loss = Mean(np.float32(0.5), np.int64(4))  # type: ignore[arg-type]  # as a workload might, against its type
    odd(num_examples=np.int64(4), metrics={"loss": loss})
    (report,) = work(1, accumulator=accumulator).reports
    assert report.metrics == {"loss": Mean(0.5, 4.0)} and type(report.metrics["loss"].sum) is float
    assert report.num_examples == 4


def test_info_that_is_not_json_names_the_client(odd: Any) -> None:
    odd(info={"norm": np.float32(1.0)})
    (failure,) = work(1).failures
    assert failure.client == 1 and failure.error.endswith("BadUpdate") and "JSON" in failure.message


def test_a_state_that_cannot_be_stored_costs_its_own_client(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(store: ServerStore, group: Group, client: int, state: Record) -> PayloadRef:
        if client == 2:
            raise MemoryError("no room")
        return PayloadRef(size=1, record=state)

    monkeypatch.setattr(ServerStore, "keep", keep)
    odd(state=Record({"s": {"x": np.ones(1)}}), num_examples=4)
    result = work(1, 2, 3)
    assert [(each.client, each.stage, each.error) for each in result.failures] == [(2, "outgoing", "MemoryError")]
    assert [report.client for report in result.reports] == [1, 3] and result.states.keys() == {1, 3}
    assert result.total is not None and result.total.record is not None
    assert RunningMean.from_record(result.total.record).weight == 8.0


def test_a_dtype_that_cannot_be_sent_names_the_client(odd: Any) -> None:
    odd(groups={"model": {**MODEL.groups["model"], "w": np.ones(3, np.complex64)}})
    (failure,) = work(1).failures
    assert failure.client == 1 and "complex64" in failure.message and "float32" in failure.message


def test_a_workload_that_returns_nothing_names_the_client(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Odd, "train", lambda self, *args: None)
    odd()
    (failure,) = work(1).failures
    assert failure.client == 1 and failure.error == "fedloom.core.errors.BadUpdate"
    assert failure.message == "'train' returned None (NoneType); expected a fedloom.core.records.Update"


class Acting(Odd):
    """Each action tells its kind and draws a number; training and evaluation are the platform's."""

    @property
    def actions(self) -> Mapping[str, Any]:
        return {"count": self._count, "evaluate.squared": self._count}

    def _count(self, job: Job, inputs: Any, state: Record | None, rng: np.random.Generator) -> Update:
        return Update(num_examples=0, info={"kind": job.kind, "draw": float(rng.random())})

    def train(self, job: Job, inputs: Any, shard: Any, rule: Any, rng: np.random.Generator) -> Update:
        return Update(num_examples=1, groups=MODEL.groups, info={"kind": f"trained by {job.kind}"})

    def evaluate(self, inputs: Any, shard: Any) -> Metrics:
        return {"loss": Mean(1.0, 2.0)}

    def shard(self, client: int) -> Any:
        return Shard()


class Shard:
    num_examples = 2


def act(monkeypatch: pytest.MonkeyPatch, kind: str, **fields: Any) -> GroupResult:
    module = registry.part("workloads", str(LINEAR), "workload")
    monkeypatch.setattr(module, "build_workload", lambda config, experiment: Acting())
    executor = Executor(PayloadChannel(), "n")
    work(1, executor=executor)
    inputs = {"model": PayloadRef(size=1, record=MODEL)}
    jobs = (Job(round=2, client=5, kind=kind),)
    key = GroupKey("run", 2, 1, 0)
    return executor.work(Group(key=key, jobs=jobs, inputs=inputs, accumulator="metrics", **fields))


@pytest.mark.parametrize(
    ("kind", "reported", "trained"),
    [
        ("count", "count", 0),
        ("count.twice", "count.twice", 0),
        ("evaluate.squared", "evaluate.squared", 0),
        ("train", "trained by train", 1),
        ("train.fine_tune", "trained by train.fine_tune", 1),
        ("evaluate", None, 0),
        ("evaluate.other", None, 0),
        ("measure", None, 0),
    ],
)
def test_a_job_is_done_by_the_action_of_its_kind_or_of_its_kinds_first_part(
    monkeypatch: pytest.MonkeyPatch, kind: str, reported: str | None, trained: int
) -> None:
    (report,) = act(monkeypatch, kind).reports
    assert (report.info.get("kind"), report.num_trained) == (reported, trained)
    if "draw" in report.info:
        assert report.info["draw"] == float(generator(1, kind, 2, 1, 5).random())
    assert report.metrics == ({"loss": Mean(1.0, 2.0)} if kind in ("evaluate", "evaluate.other") else {})


def test_a_selection_cannot_look_into_an_action(monkeypatch: pytest.MonkeyPatch) -> None:
    (failure,) = act(monkeypatch, "count", measure="update_norm").failures
    assert failure.error.endswith("UnsupportedFeature") and "does 'count' as a custom action" in failure.message


def test_an_action_a_workload_has_not_is_named_with_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    (failure,) = act(monkeypatch, "meditate").failures
    assert "no action 'meditate'; it has train, evaluate, measure, count, evaluate.squared" in failure.message


def test_an_action_a_workload_has_not_is_named() -> None:
    executor = Executor(PayloadChannel(), "n")
    work(1, executor=executor)
    jobs = (Job(round=1, client=1, kind="meditate"),)
    result = executor.work(
        Group(key=GroupKey("run", 1, 1, 0), jobs=jobs, inputs={"model": PayloadRef(size=1, record=MODEL)})
    )
    assert "no action 'meditate'" in result.failures[0].message


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (RuntimeError("cannot read caf\udce9.png"), "RuntimeError", "cannot read caf\\udce9.png"),
        (Unshowable(), f"{__name__}.Unshowable", "(its message cannot be shown: str() raises RuntimeError)"),
        (SystemExit(2), "SystemExit", "2"),
        (SystemExit(), "SystemExit", "the client's code ended the program"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "the client's code ended the program"),
        (GeneratorExit(), "GeneratorExit", "the client's code ended the program"),
        (ValueError("m" * 10**6), "ValueError", None),
    ],
)
def test_whatever_a_client_raises_is_its_failure_in_text_that_can_be_sent(
    raised: BaseException, error: str, message: str | None, odd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(self: object, job: Job, *args: object) -> Update:
        if job.client == 2:
            raise raised
        return Update(num_examples=1, groups=MODEL.groups)

    monkeypatch.setattr(Odd, "train", train)
    odd()
    result = work(1, 2, 3)
    (failure,) = result.failures
    assert (failure.client, failure.stage, failure.error) == (2, "train", error)
    assert message is None or failure.message == message
    assert len(failure.message) < 70_000
    codec.from_agent_message(replace(result, total=None)).SerializeToString()
    assert [report.client for report in result.reports] == [1, 3]


def test_ctrl_c_passes_where_it_is_the_users(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(self: object, job: Job, *args: object) -> Update:
        raise KeyboardInterrupt

    monkeypatch.setattr(Odd, "train", train)
    odd()
    with pytest.raises(KeyboardInterrupt):
        work(1, executor=Executor(PayloadChannel(), "n", NodeSetup(interruptible=True)))


@pytest.mark.parametrize("names", ["w", ["w", "v"], 3])
def test_untrained_arrays_are_named_as_the_model_names_them(names: object, monkeypatch: pytest.MonkeyPatch) -> None:
    module = registry.part("workloads", str(LINEAR), "workload")
    made = Record(MODEL.groups, {UNTRAINED: names})
    monkeypatch.setattr(module.Linear, "init", lambda self, rng: made)
    executor = Executor(PayloadChannel(), "n")
    workload = {"name": str(LINEAR), "features": 3}
    executor.prepare(
        RunSpec(run_id="run", experiment={"rounds": 3, "clients": 9, "strategy": "fedavg", "workload": workload})
    )
    group = Group(key=GroupKey("run", 0, 0, 0), jobs=(Job(round=0, client=0, kind="init", inputs=()),), inputs={})
    (failure,) = executor.work(group).failures
    assert "info 'untrained' of 'init': expected a list of names of arrays in group 'model', got" in failure.message
