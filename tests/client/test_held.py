"""Updates that wait with the client: one round of one run, an hour at most, arrays of their own."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedloom.client.held import EXPIRES_S, HeldUpdates, own
from fedloom.core.records import MODEL, Update


def update(value: float) -> Update:
    return Update(num_examples=1, groups={MODEL: {"w": np.array([value])}})


def test_a_held_update_stays_until_its_round_is_over() -> None:
    held = HeldUpdates()
    held.put("run", 1, 7, update(1.0))
    held.put("run", 1, 8, update(2.0))
    for _ in range(2):  # its delivery may be lost, so it can be asked for again
        found = held.take("run", 1, 7)
        assert found is not None and found.groups[MODEL]["w"].tolist() == [1.0]
    assert held.take("run", 1, 9) is None
    assert held.take("run", 2, 7) is None and len(held) == 0


def test_another_run_ends_it_too() -> None:
    held = HeldUpdates()
    held.put("run", 1, 7, update(1.0))
    held.put("other", 1, 8, update(2.0))
    assert held.take("other", 1, 7) is None and len(held) == 1


def test_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    held, now = HeldUpdates(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    held.put("run", 1, 7, update(1.0))
    now += EXPIRES_S - 1.0
    held.put("run", 1, 8, update(2.0))
    assert held.take("run", 1, 7) is not None
    now += 2.0
    assert held.take("run", 1, 7) is None
    assert held.take("run", 1, 8) is not None


def test_what_is_held_is_not_the_workloads_buffer() -> None:
    buffer = np.array([1.0])
    kept = own(Update(num_examples=1, groups={MODEL: {"w": buffer}}))
    buffer[0] = 9.0
    assert kept.groups[MODEL]["w"].tolist() == [1.0]
