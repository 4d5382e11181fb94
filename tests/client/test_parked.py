"""Updates that wait where they were made: one round of each run, an hour at most, in so many bytes, as copies."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedloom.client.parked import EXPIRES_S, ParkedUpdates, own
from fedloom.core.records import MODEL, Record, Update


def update(value: float, size: int = 1) -> Update:
    return Update(num_examples=1, groups={MODEL: {"w": np.full(size, value)}})


def values(parked: ParkedUpdates, *keys: tuple[str, int, int]) -> list[float | None]:
    found = [parked.take(*key) for key in keys]
    return [None if update is None else float(update.groups[MODEL]["w"][0]) for update in found]


def test_a_parked_update_stays_until_its_round_is_over() -> None:
    parked = ParkedUpdates()
    parked.put("run", 1, 7, update(1.0))
    parked.put("run", 1, 8, update(2.0))
    for _ in range(2):  # its delivery may be lost, so it can be asked for again
        assert values(parked, ("run", 1, 7)) == [1.0]
    assert values(parked, ("run", 1, 9)) == [None]
    assert values(parked, ("run", 2, 7)) == [None] and len(parked) == 0


def test_each_run_has_a_round_of_its_own() -> None:
    parked = ParkedUpdates()
    for round in (1, 2):
        for run, base in (("a", 10.0), ("b", 20.0)):
            parked.put(run, round, 7, update(base + round))
        assert values(parked, ("a", round, 7), ("b", round, 7)) == [10.0 + round, 20.0 + round]
    parked.put("a", 3, 8, update(13.0))
    assert values(parked, ("a", 3, 8), ("a", 3, 7), ("b", 2, 7)) == [13.0, None, 22.0]
    parked.forget("a")
    assert values(parked, ("a", 3, 8), ("b", 2, 7)) == [None, 22.0]


def test_a_late_message_of_an_earlier_round_ends_nothing() -> None:
    parked = ParkedUpdates()
    parked.put("run", 2, 7, update(2.0))
    assert values(parked, ("run", 1, 7), ("run", 2, 7)) == [None, 2.0]


def test_a_run_that_resumes_from_an_earlier_round_never_gets_what_it_parked_before() -> None:
    parked = ParkedUpdates()
    parked.put("run", 5, 7, update(5.0))
    parked.put("run", 4, 8, update(4.0))
    assert values(parked, ("run", 5, 7)) == [None]


def test_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    parked, now = ParkedUpdates(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    parked.put("run", 1, 7, update(1.0))
    now += EXPIRES_S - 1.0
    parked.put("run", 1, 8, update(2.0))
    assert parked.take("run", 1, 7) is not None
    now += 2.0
    assert values(parked, ("run", 1, 7), ("run", 1, 8)) == [None, 2.0]


def test_beyond_the_limit_the_oldest_of_all_runs_is_dropped() -> None:
    """Ten floats are 80 bytes; 200 bytes hold two such updates."""
    parked = ParkedUpdates(limit_bytes=200)
    for index, run in enumerate(("a", "b", "a")):
        parked.put(run, 1, index, update(float(index), 10))
    assert values(parked, ("a", 1, 0), ("b", 1, 1), ("a", 1, 2)) == [None, 1.0, 2.0] and parked.num_bytes == 160
    parked.put("c", 1, 3, update(3.0, 26))  # 208 bytes fit nowhere
    assert values(parked, ("c", 1, 3), ("b", 1, 1), ("a", 1, 2)) == [None, 1.0, 2.0]
    parked.put("b", 1, 1, update(9.0, 10))  # in its own place
    assert values(parked, ("b", 1, 1)) == [9.0]


def test_a_clients_state_counts_as_its_update_does() -> None:
    parked = ParkedUpdates(limit_bytes=100)
    state = Record({"own": {"memory": np.zeros(10)}})
    parked.put("run", 1, 0, Update(num_examples=1, groups=update(1.0, 5).groups, state=state))
    assert parked.take("run", 1, 0) is None


def test_what_is_parked_is_not_the_workloads_buffer() -> None:
    buffer = np.array([1.0])
    state = Record({"own": {"memory": buffer}}, {"seen": 3})
    kept = own(Update(num_examples=1, groups={MODEL: {"w": buffer}}, state=state))
    buffer[0] = 9.0
    assert kept.groups[MODEL]["w"].tolist() == [1.0]
    assert kept.state is not None and kept.state.info == {"seen": 3}
    assert kept.state.groups["own"]["memory"].tolist() == [1.0]
