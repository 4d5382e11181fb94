"""Whether a node may work now: its owner's limits on traffic, runs and rounds of a day, hours, and the owner's hook."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from fedloom.client.owner_commands import ask
from fedloom.client.policy import MAX_RETRY_S, Limits
from fedloom.client.usage import Usage
from fedloom.core.errors import PolicyRefused
from fedloom.core.messages import GroupKey


class Availability:
    """Compares a node's limits with its clock and with what it has done today.

    Args:
        limits: of the policy.
        usage: today's traffic, runs and rounds.
        now: the node's clock, local time.
    """

    def __init__(self, limits: Limits, usage: Usage, now: Callable[[], datetime] = datetime.now) -> None:
        self._limits, self._usage, self._now = limits, usage, now
        self._hook_reply: tuple[float, str] | None = None

    def admit(self, coming: int = 0) -> None:
        """Check whether the node may work now, with `coming` more bytes of traffic.

        Raises:
            PolicyRefused: it may not.
        """
        self._admit_bytes(coming)
        self._admit_hour()
        self._ask_hook()

    def admit_day(self, key: GroupKey) -> None:
        """Check whether a group's run and round are within the day's limits.

        Raises:
            PolicyRefused: one of them would be one too many today.
        """
        limits, usage = self._limits, self._usage
        again_s = min(MAX_RETRY_S, usage.seconds_left())
        if limits.runs_per_day is not None and usage.runs_with(key.run_id) > limits.runs_per_day:
            text = f"the node has worked for {limits.runs_per_day} runs today, which is its limit"
            raise PolicyRefused(text, kind="runs", retry_s=again_s)
        if limits.rounds_per_day is not None and usage.rounds_with(key.run_id, key.round) > limits.rounds_per_day:
            text = f"the node has worked for {limits.rounds_per_day} rounds today, which is its limit"
            raise PolicyRefused(text, kind="rounds", retry_s=again_s)

    def begin(self, key: GroupKey) -> None:
        """Count a group's run and round, if the policy limits either.

        Raises:
            OSError: the count cannot be written.
        """
        if self._limits.runs_per_day is not None or self._limits.rounds_per_day is not None:
            self._usage.begin(key.run_id, key.round)

    def _admit_bytes(self, coming: int) -> None:
        limit = self._limits.bytes_per_day
        if limit is not None and self._usage.today() + coming > limit:
            raise PolicyRefused(
                f"{coming} bytes more would exceed the day's {limit} ({self._usage.today()} so far)",
                kind="bytes",
                retry_s=min(MAX_RETRY_S, self._usage.seconds_left()),
            )

    def _admit_hour(self) -> None:
        hours = self._limits.hours
        if hours and not any(_inside(self._now(), window) for window in hours):
            raise PolicyRefused(f"the node works only at {', '.join(hours)}", kind="hours", retry_s=60.0)

    def _ask_hook(self) -> None:
        limits = self._limits
        if not limits.hook:
            return
        if self._hook_reply is None or time.monotonic() - self._hook_reply[0] > limits.hook_every_s:
            self._hook_reply = time.monotonic(), ask(limits.hook, limits.hook_timeout_s)[1]
        if self._hook_reply[1]:
            raise PolicyRefused(f"not now: {self._hook_reply[1]}", kind="hook", retry_s=limits.hook_every_s)


def _inside(now: datetime, window: str) -> bool:
    begin, end = window.split("-")
    clock = f"{now:%H:%M}"
    return begin <= clock < end if begin <= end else clock >= begin or clock < end
