"""Frames that an agent leaves in the memory its host shares with the server, instead of sending them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedloom.core import frames
from fedloom.core.depot import Buffer, Depot
from fedloom.core.layout import Layout
from fedloom.core.messages import PayloadRef
from fedloom.core.records import Array, Groups, Record

HEADER_ROOM = 4096
"""Bytes reserved before leased arrays for a header that is not final yet."""


@dataclass(frozen=True, slots=True)
class _Lease:
    """Leased arrays in a buffer that `store` publishes without copying."""

    run_id: str
    arrays: Groups
    buffer: Buffer
    layout: Layout


class HostMemory:
    """The server's depot on this host, once a server has shown one, and what this agent has stored in it."""

    def __init__(self) -> None:
        self._depot: Depot | None = None
        self._leases: dict[int, _Lease] = {}
        """Leased arrays by their `id`, referenced so that no other record can get the same one."""
        self._shared: dict[str, list[str]] = {}
        """Names of the buffers that each run's records were stored in."""

    @property
    def depot(self) -> Depot | None:
        """Return the depot; None if the server is on another host, or shares none."""
        return self._depot

    def join(self, path: str, nonce: str) -> None:
        """Take part in the depot that a server names; what was in an earlier server's is forgotten."""
        if self._depot is not None and str(self._depot.path) != path:
            self._depot.close()  # the server was restarted and has another depot
            self._depot = None
            self._shared.clear()
            self._leases.clear()
        self._depot = self._depot or Depot.join(path, nonce)

    def close(self) -> None:
        """Give the depot's memory back."""
        if self._depot is not None:
            self._depot.close()
            self._depot = None

    def lease(self, record: Record, run_id: str, least_bytes: int) -> Groups:
        """Return arrays of a record's shapes, in shared memory if its frame has more than `least_bytes` bytes."""
        layout = Layout.of(record)
        if self._depot is None or layout.size <= least_bytes:
            return _empty(record)
        layout = Layout.of(record, data_start=-(-(len(layout.header) + HEADER_ROOM) // 64) * 64)
        buffer = self._depot.lease(layout.size)
        views = layout.views(buffer.memory)
        ordered = {group: {name: views[group][name] for name in arrays} for group, arrays in record.groups.items()}
        self._leases[id(ordered)] = _Lease(run_id, ordered, buffer, layout)
        return ordered

    def share(self, record: Record, layout: Layout, run_id: str) -> PayloadRef:
        """Leave the frame in the host's memory; leased arrays are already there and only need their header."""
        assert self._depot is not None
        lease = self._leases.pop(id(record.groups), None)
        stored = self._shared.setdefault(run_id, [])
        if lease is not None:
            planned = lease.layout
            final = Layout.of(record, data_start=planned.slots[0].start if planned.slots else 0)
            if [slot.start for slot in final.slots] == [slot.start for slot in planned.slots]:
                lease.buffer.memory[: len(final.header)] = final.header
                stored.append(lease.buffer.name)
                return PayloadRef(size=final.size, shared=lease.buffer.name)
        buffer = self._depot.lease(layout.size)
        frames.write_into(record, buffer.memory, layout)
        stored.append(buffer.name)
        if lease is not None:
            self._depot.release(lease.buffer.name)
        return PayloadRef(size=layout.size, shared=buffer.name)

    def recycle(self, run_id: str) -> None:
        """Release what was stored and leased for a run."""
        abandoned = {key: lease for key, lease in self._leases.items() if lease.run_id == run_id}
        names = [*self._shared.pop(run_id, ()), *(lease.buffer.name for lease in abandoned.values())]
        for key in abandoned:
            del self._leases[key]
        if self._depot is not None:
            for name in names:
                self._depot.release(name)


def _empty(record: Record) -> dict[str, dict[str, Array]]:
    return {
        group: {name: np.empty(array.shape, array.dtype) for name, array in arrays.items()}
        for group, arrays in record.groups.items()
    }
