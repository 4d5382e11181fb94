"""Pinned records, fetched once for all exchanges that read them."""

from __future__ import annotations

from collections.abc import Callable

from fedloom.core import frames
from fedloom.core.errors import BadFrame
from fedloom.core.messages import PayloadRef
from fedloom.core.pinned import Pinned
from fedloom.core.records import Record

LIMIT_BYTES = 4_000_000_000
"""Default limit of an agent's pinned records; bytes. Those used longest ago are dropped first."""


class RecordCache:
    """Pinned records by digest, within a limit of bytes.

    Args:
        fetch: gets the record behind a reference.
        limit_bytes: of array data; the latest record always stays.
    """

    def __init__(self, fetch: Callable[[PayloadRef], Record], limit_bytes: int = LIMIT_BYTES) -> None:
        self._fetch, self._limit_bytes = fetch, limit_bytes
        self._records: dict[str, Pinned] = {}

    def get(self, ref: PayloadRef) -> Pinned:
        """Return the record, always the same object while it is cached.

        Raises:
            BadFrame: the record fetched does not have the server's digest.
        """
        record = self._records.pop(ref.sha256, None) or self._fetched(ref)
        self._records[ref.sha256] = record
        while sum(cached.num_bytes for cached in self._records.values()) > self._limit_bytes and len(self._records) > 1:
            del self._records[next(iter(self._records))]
        return record

    def clear(self) -> None:
        """Drop all records."""
        self._records.clear()

    def _fetched(self, ref: PayloadRef) -> Pinned:
        record = self._fetch(ref)
        found = frames.digest(record)
        if found != ref.sha256:
            raise BadFrame(
                f"expected a pinned record with digest {ref.sha256[:16]}…, got {found[:16]}…. "
                "Do server and agent run the same version? Nothing was trained on it"
            )
        return Pinned(record.groups, record.info, found)
