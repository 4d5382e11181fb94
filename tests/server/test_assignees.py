"""An open exchange: the nodes of a group, and the number of its clients."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from fedloom.core.messages import RunSpec
from fedloom.core.records import Exchange, Job
from fedloom.server.fleet.open_exchange import OpenExchange
from fedloom.server.fleet.planned import PlannedExchange, PlannedGroup, RunFacts


def opened(groups: int, reserve: Collection[int] = ()) -> OpenExchange:
    jobs = [Job(round=1, client=client) for client in range(groups)]
    planned = PlannedExchange(
        run=RunFacts(spec=RunSpec(run_id="r", experiment={})),
        round=1,
        index=0,
        exchange=Exchange(jobs=tuple(jobs)),
        groups=tuple(PlannedGroup(jobs=(job,), work=1.0) for job in jobs),
        reserve=reserve,
    )
    return OpenExchange(planned)


@pytest.mark.parametrize(("reserve", "released", "before", "after"), [((), (), 5, 5), ((3, 4), (4,), 3, 4)])
def test_released_groups_count_among_the_clients_of_an_exchange(
    reserve: Collection[int], released: Collection[int], before: int, after: int
) -> None:
    one = opened(5, reserve)
    assert one.clients == before
    one.release(released)
    assert one.clients == after and set(released) <= set(one.pending)


def test_the_nodes_of_a_group_are_those_it_was_assigned_to() -> None:
    one = opened(2)
    one.bind(0, "a")
    one.bind(0, "b")
    assert set(one.assignees(0)) == {"a", "b"} and not one.assignees(1)
    one.disown("a")
    assert set(one.assignees(0)) == {"b"}
