"""A workload that trains whole groups: once for all, or one by one where that fails, which is said once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from payload_channel import PayloadChannel
from support_paths import LINEAR

from fedloom.client.executor import Executor
from fedloom.core import registry
from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.errors import ServerUnreachable
from fedloom.core.events import Notice
from fedloom.core.messages import Group, GroupKey, GroupResult, PayloadRef, RunSpec
from fedloom.core.protocols import Shard
from fedloom.core.records import MODEL, Job, Record, Update
from fedloom.testing.fleet import EventLog, run_on_fleet

Linear = registry.part("workloads", str(LINEAR), "workload").Linear
ONE = Record({MODEL: {"w": np.ones(3, np.float32), "b": np.zeros((), np.float32)}})


class Breaking(PayloadChannel):
    """Reading payloads may fail as if the connection broke."""

    def __init__(self) -> None:
        self.broken = 0

    def fetch(self, ref: PayloadRef) -> Record:
        self.broken -= 1
        if self.broken == 0:
            raise ServerUnreachable("cut")
        return super().fetch(ref)


class Grouped(Linear):  # type: ignore[misc,valid-type]
    """Linear regression whose clients of a group are trained in one call."""

    program = "group"
    groups: list[int]
    bad_rounds: tuple[int, ...] = ()

    def train_group(
        self,
        jobs: Sequence[Job],
        inputs: Mapping[str, Record],
        shards: Sequence[Shard],
        rngs: Sequence[np.random.Generator],
    ) -> list[Update]:
        self.groups.append(len(jobs))
        if jobs[0].round in self.bad_rounds and len(jobs) > 1:
            raise FloatingPointError("singular matrix")
        return [self.train(job, inputs, shard, None, rng) for job, shard, rng in zip(jobs, shards, rngs, strict=True)]


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the groups that the program is called with; its rounds 2 and 3 fail."""
    module, sizes = registry.part("workloads", str(LINEAR), "workload"), list[int]()

    def build(config: Any, experiment: Any) -> Any:
        made = Grouped(config, experiment)
        made.groups, made.bad_rounds = sizes, (2, 3)
        return made

    monkeypatch.setattr(module, "build_workload", build)
    return sizes


def executor(channel: Breaking | None = None) -> Executor:
    made = Executor(channel or Breaking(), "n")
    settings = {"rounds": 9, "clients": 9, "strategy": "fedavg", "workload": {"name": str(LINEAR), "features": 3}}
    for run in ("run", "other"):
        made.prepare(RunSpec(run_id=run, experiment=settings))
    return made


def work(made: Executor, round: int, run: str = "run") -> GroupResult:
    jobs = tuple(Job(round=round, client=client) for client in (1, 2, 3))
    inputs = {MODEL: PayloadRef(size=1, record=ONE)}
    result = made.work(Group(key=GroupKey(run, round, 0, 0), jobs=jobs, inputs=inputs))
    assert not result.failures
    return result


def mean(result: GroupResult) -> np.ndarray[Any, Any]:
    assert result.total is not None and result.total.record is not None
    return RunningMean.from_record(result.total.record).value()[MODEL]["w"]


def test_a_program_that_fails_is_named_once_a_run_with_its_reason_and_clients_are_trained_one_by_one(
    grouped: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = executor()
    with caplog.at_level(logging.WARNING):
        results = [work(made, round) for round in (1, 2, 3)]
        found = [mean(result) for result in results]
        work(made, 2, "other")
    assert [len(result.notices) for result in results] == [0, 1, 0]
    assert results[1].notices[0].endswith("one by one, which is slower: FloatingPointError: singular matrix")
    assert grouped == [3, 3, 1, 1, 1, 3, 1, 1, 1, 3, 1, 1, 1]
    said = [record for record in caplog.records if "together" in record.getMessage()]
    assert [record.__dict__["run"] for record in said] == ["run", "other"]
    assert "in round 2, so its clients are trained one by one, which is slower: FloatingPointError: singular" in (
        said[0].getMessage()
    )
    monkeypatch.setattr(Grouped, "program", "loop")
    alone = executor()
    for round, value in zip((1, 2, 3), found, strict=True):
        np.testing.assert_array_equal(value, mean(work(alone, round)))


def test_a_connection_that_breaks_is_no_failure_of_the_program(
    grouped: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    channel = Breaking()
    made = executor(channel)
    channel.broken = 1
    with pytest.raises(ServerUnreachable):
        work(made, 1)
    assert grouped == []
    work(made, 1)
    assert grouped == [3] and not caplog.records


def test_a_notice_reaches_the_users_of_the_run_once_whatever_node_it_comes_from(grouped: list[int]) -> None:
    experiment = Experiment.parse(
        {
            "name": "noticed",
            "rounds": 3,
            "clients": 6,
            "cohort": 6,
            "round": {"group_size": 3},
            "strategy": "fedavg",
            "workload": {"name": str(LINEAR), "features": 3},
            "evaluation": {"every": 0},
        }
    )
    log = EventLog()
    assert run_on_fleet(experiment, workers=1, sinks=[log]).error is None
    (notice,) = log.of(Notice)
    assert notice.message.startswith("node agent-0: workload ") and notice.message.endswith("singular matrix")
