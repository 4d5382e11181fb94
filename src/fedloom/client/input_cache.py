"""An exchange's inputs, read once for all groups of it that an agent gets, whatever other runs it serves between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedloom.client.record_cache import RecordCache
from fedloom.core.errors import NotFound
from fedloom.core.messages import Group, PayloadRef
from fedloom.core.records import Record

LIMIT_BYTES = 4_000_000_000
"""Default limit of the inputs an agent caches, all runs together, pinned ones not counted; bytes of array data."""


class InputsGone(Exception):
    """The server no longer offers a group's inputs."""

    def __init__(self, error: NotFound) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class _Cached:
    """The inputs of a run's present exchange that have been read, each with the reference it was read by."""

    exchange: tuple[str, int, int]
    records: dict[str, Record] = field(default_factory=dict)
    refs: dict[str, PayloadRef] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(self.records[name].num_bytes for name, ref in self.refs.items() if not ref.pinned)

    def serves(self, exchange: tuple[str, int, int], inputs: Mapping[str, PayloadRef]) -> bool:
        """Return whether these are inputs of the exchange, as the same server offers them."""
        known = ((self.refs[name], ref) for name, ref in inputs.items() if name in self.refs)
        return self.exchange == exchange and all(_same_payload(old, new) for old, new in known)


class InputCache:
    """The inputs of each run's present exchange, within a limit of bytes.

    Args:
        fetch: gets the record behind a reference.
        pinned: caches the records that never change.
        limit_bytes: of array data; the latest inputs always stay, those of the run that was served longest ago
            are dropped first.
    """

    def __init__(
        self, fetch: Callable[[PayloadRef], Record], pinned: RecordCache, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._fetch, self._pinned, self._limit_bytes = fetch, pinned, limit_bytes
        self._runs: dict[str, _Cached] = {}
        self._last: tuple[Group, dict[str, Record]] | None = None
        """The group read last, whose inputs are always cached: each of its jobs reads them."""

    def read(self, group: Group) -> dict[str, Record]:
        """Return a group's inputs by name: the same object for all groups of an exchange while it is cached.

        Content unchanged since the run's previous exchange is not fetched again. A restarted server
        may repeat an exchange it had begun, with other content: that is fetched.
        """
        if self._last is not None and self._last[0] is group:
            return self._last[1]
        run_id, exchange = group.key.run_id, group.key[:3]
        before = self._runs.pop(run_id, None)
        cached = before if before is not None and before.serves(exchange, group.inputs) else _Cached(exchange)
        try:
            for name, ref in group.inputs.items():
                if name not in cached.refs:
                    cached.records[name] = self._record(name, ref, before)
                    cached.refs[name] = ref
        finally:  # inputs fetched before a broken connection need not be fetched after it
            self._runs[run_id] = cached
        while len(self._runs) > 1 and self.num_bytes > self._limit_bytes:
            del self._runs[next(iter(self._runs))]
        self._last = (group, cached.records)
        return cached.records

    def forget(self, run_id: str) -> None:
        """Drop a run's inputs: the run is over."""
        self._runs.pop(run_id, None)
        self._last = None

    @property
    def num_bytes(self) -> int:
        """Return the bytes of array data cached now, pinned records not counted."""
        return sum(cached.num_bytes for cached in self._runs.values())

    def _record(self, name: str, ref: PayloadRef, before: _Cached | None) -> Record:
        if ref.pinned:
            return self._pinned.get(ref)
        if before is not None and name in before.refs and _same_content(before.refs[name], ref):
            return before.records[name]
        return self._fetch(ref)


def _same_payload(old: PayloadRef, new: PayloadRef) -> bool:
    """Return whether two references of one exchange mean the same payload."""
    return (
        old.record is new.record
        and (old.shared, old.sha256, old.size) == (new.shared, new.sha256, new.size)
        and old.inline == new.inline
    )


def _same_content(old: PayloadRef, new: PayloadRef) -> bool:
    """Return whether references of two exchanges certainly mean equal records: shared buffers are reused."""
    if new.record is not None:
        return old.record is new.record
    return bool(new.sha256) and old.sha256 == new.sha256
