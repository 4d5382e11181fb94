"""A channel to a server in the same process: the messages are the values themselves, the payloads the records."""

from __future__ import annotations

import contextlib
import queue

import numpy as np

from fedloom.core.errors import BadMessage, NotFound, ServerUnreachable
from fedloom.core.frames import frame_size
from fedloom.core.messages import FromAgent, Hello, PayloadRef, ToAgent, Welcome
from fedloom.core.records import Array, Arrays, Groups, Record
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.nodes import Mailbox


class InProcessChannel:
    """An agent's channel straight into a coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._hello: Hello | None = None
        self._mailbox: Mailbox | None = None

    def open(self, hello: Hello) -> Welcome:
        welcome = self._coordinator.register(hello, "process")
        self._hello = hello
        self._mailbox = self._coordinator.attach(hello.node, hello.session)
        return welcome

    def send(self, message: FromAgent) -> None:
        hello = self._opened()
        try:
            self._coordinator.receive(hello.node, hello.session, message)
        except NotFound as exc:
            raise ServerUnreachable(f"the server no longer knows this session: {exc}") from exc

    def receive(self, timeout_s: float) -> ToAgent | None:
        self._opened()
        assert self._mailbox is not None
        try:
            message = self._mailbox.get(timeout_s)
        except queue.Empty:
            return None
        if message is None:
            raise ServerUnreachable("the server closed this session")
        return message

    def fetch(self, ref: PayloadRef) -> Record:
        if ref.record is None:
            raise BadMessage("received a payload without its record in an agent in the server's own process")
        return Record({group: _read_only(arrays) for group, arrays in ref.record.groups.items()}, ref.record.info)

    def store(self, record: Record, run_id: str) -> PayloadRef:
        return PayloadRef(size=frame_size(record), record=record)

    def lease(self, record: Record, run_id: str) -> Groups:
        return {
            group: {name: np.empty(array.shape, array.dtype) for name, array in arrays.items()}
            for group, arrays in record.groups.items()
        }

    def recycle(self, run_id: str) -> None:
        """Do nothing: no memory is shared."""

    def close(self) -> None:
        if self._hello is not None:
            with contextlib.suppress(NotFound):
                self._coordinator.leave(self._hello.node, self._hello.session, "the agent closed its channel")

    def _opened(self) -> Hello:
        if self._hello is None or self._mailbox is None:
            raise ServerUnreachable("the channel is not open")
        return self._hello


def _read_only(arrays: Arrays) -> dict[str, Array]:
    """Return read-only views: the memory is the server's own model."""
    views = {name: np.asarray(array).view() for name, array in arrays.items()}
    for view in views.values():
        view.flags.writeable = False
    return views
