"""How an exchange's jobs are cut into groups, and the sections that a round's record gets."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.core.protocols import Roster, WorkloadInfo
from fedloom.core.records import Exchange, Job, Record, RoundContext
from fedloom.server.fleet.planned import RunFacts
from fedloom.server.rounds.closing import ClosingTerms
from fedloom.server.rounds.grouping import GroupPlanner
from fedloom.server.rounds.open_round import OpenRound
from fedloom.server.rounds.request import ExchangeRequest
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.testing.by_hand import run_spec
from fedloom.testing.records import model_record


def request(*jobs: Job, reserve: int = 0, collects: int | None = None) -> ExchangeRequest:
    exchange = Exchange(jobs=jobs, inputs={"model": model_record()}, collects=collects)
    terms = ClosingTerms(quota=len(jobs) - reserve, reserve=reserve)
    return ExchangeRequest(round=3, index=0, exchange=exchange, terms=terms)


def jobs(*clients: int, node: str = "") -> tuple[Job, ...]:
    return tuple(Job(round=3, client=client, node=node) for client in clients)


def planner(group_size: int, keeps_states: bool = True) -> tuple[GroupPlanner, MemoryRunStore]:
    store = MemoryRunStore("run")
    store.save_workload(WorkloadInfo(data={}, client_sizes=[10, 20, 30, 40]))
    return GroupPlanner(RunFacts(spec=run_spec(), group_size=group_size, keeps_states=keeps_states), store), store


def test_groups_are_cut_in_order_and_weigh_what_their_clients_have() -> None:
    cut = planner(2)[0].cut(request(*jobs(3, 1, 0, 2, 9)))
    assert [[job.client for job in group.jobs] for group in cut.groups] == [[3, 1], [0, 2], [9]]
    assert [group.work for group in cut.groups] == [60.0, 40.0, 1.0], "a client of unknown size counts one"
    assert (cut.reserve, cut.span) == (range(3, 3), 1)


def test_the_reserve_is_cut_apart() -> None:
    cut = planner(2)[0].cut(request(*jobs(0, 1, 2, 3, 4), reserve=2))
    assert [[job.client for job in group.jobs] for group in cut.groups] == [[0, 1], [2], [3, 4]]
    assert cut.reserve == range(2, 3)


def test_jobs_of_different_nodes_share_no_group() -> None:
    cut = planner(2)[0].cut(request(*jobs(0, 1, 2, node="lab"), *jobs(3, node="ward"), *jobs(4, 5)))
    assert [(group.only, [job.client for job in group.jobs]) for group in cut.groups] == [
        ("lab", [0, 1]), ("lab", [2]), ("ward", [3]), ("", [4, 5]),
    ]  # fmt: skip


def test_parked_updates_travel_one_by_one_and_are_summed_as_their_groups_would_be() -> None:
    cut = planner(3)[0].cut(request(*jobs(0, 1, 2, 3), collects=0))
    assert [[job.client for job in group.jobs] for group in cut.groups] == [[0], [1], [2], [3]] and cut.span == 3


@pytest.mark.parametrize("keeps", [True, False])
def test_states_are_sent_where_the_server_keeps_them(keeps: bool) -> None:
    groups, store = planner(2, keeps_states=keeps)
    store.save_client(1, 2, 0, Record({"own": {"memory": np.ones(1, np.float32)}}))
    (group,) = groups.cut(request(*jobs(0, 1))).groups
    assert list(group.states) == ([1] if keeps else []) and group.keeps_states == keeps


def test_two_features_cannot_write_one_section() -> None:
    round = OpenRound(
        number=7, info=WorkloadInfo(data={}), roster=Roster(3), selection_state=None, state=None,
        context=RoundContext(round=7, cohort=(), population=3, rounds=None, seed=1),
    )  # fmt: skip
    round.add_section("privacy", {"epsilon": 1.0})
    with pytest.raises(ValueError, match="round 7: two features write the record's section 'privacy'"):
        round.add_section("privacy", {"epsilon": 2.0})
    assert round.sections == {"privacy": {"epsilon": 1.0}}
