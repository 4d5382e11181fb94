"""A node that does not play by the rules: channels that change, invent and repeat what the agent says."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

import numpy as np

from fedloom.core.errors import FedloomError
from fedloom.core.messages import (
    Channel,
    FromAgent,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    PayloadRef,
    ToAgent,
    Welcome,
)
from fedloom.core.records import Array, Record
from fedloom.core.seeds import generator
from fedloom.testing.faults import ForwardingChannel

_FLOOD_S = 0.005
"""Pause between two bursts of a flood."""
_BURST = 50
"""Messages in one burst."""


class LyingChannel(ForwardingChannel):
    """A channel whose agent works, and whose results are not what came of it; the initial model excepted.

    Round 0 has one job, the initial model, and whoever is asked for it is believed: nobody else knows what to expect.

    Args:
        inner: the real one.
        lie: one of `schedule.LIES`.
        seed: of what is invented.
    """

    def __init__(self, inner: Channel, lie: str, seed: int) -> None:
        super().__init__(inner)
        self._lie = lie
        self._rng = generator(seed, "lies")
        self._round = 0
        self._sent: list[FromAgent] = []
        self._closed = threading.Event()
        self._flood: threading.Thread | None = None

    def open(self, hello: Hello) -> Welcome:
        welcome = self.inner.open(hello)
        if self._lie == "floods" and self._flood is None:
            self._flood = threading.Thread(target=self._pour, daemon=True)
            self._flood.start()
        return welcome

    def send(self, message: FromAgent) -> None:
        if self._lie == "other clients" and isinstance(message, GroupResult):
            reports = tuple(replace(report, client=report.client + 1) for report in message.reports)
            message = replace(message, reports=reports)
        self.inner.send(message)
        if self._lie == "replays":
            self._sent.append(message)
            for index in self._rng.integers(len(self._sent), size=3):
                self.inner.send(self._sent[int(index)])

    def receive(self, timeout_s: float) -> ToAgent | None:
        message = self.inner.receive(timeout_s)
        if isinstance(message, Group):
            self._round = message.key.round
        return message

    def store(self, record: Record, run_id: str) -> PayloadRef:
        change = {"wrong shapes": _longer, "not a number": _spoilt}.get(self._lie)
        if change is not None and self._round:
            groups = {g: {n: change(array) for n, array in arrays.items()} for g, arrays in record.groups.items()}
            record = Record(groups, record.info)
        return self.inner.store(record, run_id)

    def close(self) -> None:
        self._closed.set()
        self.inner.close()

    def _pour(self) -> None:
        """Heartbeats about nothing and results for nobody, as fast as they go out."""
        keys = tuple(GroupKey(f"nothing-{index}", index, 0, 0) for index in range(100))
        number = 0
        while not self._closed.wait(_FLOOD_S):
            for _ in range(_BURST):
                number += 1
                strange = GroupKey(f"nobody-{number}", number, 0, 0)
                with contextlib.suppress(FedloomError):
                    self.inner.send(Heartbeat(groups=keys))
                    self.inner.send(GroupResult(key=strange, total=None))
            time.sleep(0)


def _longer(array: Array) -> Array:
    return np.zeros((array.size + 1,), array.dtype)


def _spoilt(array: Array) -> Array:
    spoilt = np.array(array)
    spoilt.reshape(-1)[:1] = np.nan
    return spoilt
