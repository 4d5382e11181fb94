"""Counts the helper processes of a node against its limit, and ends a run's with the run."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fedloom.client.helper_processes.factory import ONE_CORE
from fedloom.core.errors import PolicyRefused
from fedloom.core.protocols import HelperHandle, Helpers, Resources


class HelperLimit:
    """Limit of helpers of a node, all its runs together.

    Args:
        most: None for no limit.
    """

    def __init__(self, most: int | None) -> None:
        self._most, self._running, self._lock = most, 0, threading.Lock()

    def take(self) -> None:
        """Count one more helper.

        Raises:
            PolicyRefused: the limit of the node's policy is reached.
        """
        with self._lock:
            if self._most is not None and self._running >= self._most:
                raise PolicyRefused(
                    f"the workload requests a helper process beyond the {self._most} allowed here (limits.helpers)",
                    kind="helpers",
                )
            self._running += 1

    def give_back(self) -> None:
        """Count one fewer."""
        with self._lock:
            self._running -= 1


class RunHelpers:
    """The helpers of one run: what its workload starts them by.

    Args:
        inner: starts them.
        limit: of the node.
    """

    def __init__(self, inner: Helpers, limit: HelperLimit) -> None:
        self._inner, self._limit = inner, limit
        self._handles: list[_CountedHandle] = []

    def start(
        self, factory: Callable[..., object], *arguments: object, resources: Resources = ONE_CORE
    ) -> HelperHandle:
        self._limit.take()
        try:
            inner = self._inner.start(factory, *arguments, resources=resources)
        except BaseException:
            self._limit.give_back()
            raise
        self._handles.append(_CountedHandle(inner, self._limit))
        return self._handles[-1]

    def close(self) -> None:
        """Stop all helpers that are left."""
        for handle in self._handles:
            handle.stop()
        self._handles.clear()


class _CountedHandle:
    """A helper that is counted until it is stopped."""

    def __init__(self, inner: HelperHandle, limit: HelperLimit) -> None:
        self._inner, self._limit, self._stopped = inner, limit, False

    def call(self, method: str, *arguments: object) -> object:
        return self._inner.call(method, *arguments)

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._inner.stop()
            self._limit.give_back()
