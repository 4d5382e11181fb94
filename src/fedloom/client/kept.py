"""Pinned records an agent keeps, so that each is fetched once."""

from __future__ import annotations

from collections.abc import Callable

from fedloom.core import frames
from fedloom.core.errors import BadFrame
from fedloom.core.messages import PayloadRef
from fedloom.core.pinned import Pinned
from fedloom.core.records import Record

LIMIT_BYTES = 4 << 30
"""Kept records beyond this are dropped, least recently used first."""


class KeptRecords:
    """Records by digest, within a limit of bytes.

    Args:
        fetch: gets the record behind a reference.
        limit_bytes: where dropping begins; the record asked for last always stays.
    """

    def __init__(self, fetch: Callable[[PayloadRef], Record], limit_bytes: int = LIMIT_BYTES) -> None:
        self._fetch, self._limit_bytes = fetch, limit_bytes
        self._records: dict[str, Pinned] = {}

    def get(self, ref: PayloadRef) -> Pinned:
        """The record, always the same object while it is kept.

        Raises:
            BadFrame: what was fetched is not what the server named.
        """
        record = self._records.pop(ref.sha256, None) or self._fetched(ref)
        self._records[ref.sha256] = record
        while sum(kept.num_bytes for kept in self._records.values()) > self._limit_bytes and len(self._records) > 1:
            del self._records[next(iter(self._records))]
        return record

    def clear(self) -> None:
        """Drop all."""
        self._records.clear()

    def _fetched(self, ref: PayloadRef) -> Pinned:
        record = self._fetch(ref)
        found = frames.digest(record)
        if found != ref.sha256:
            raise BadFrame(
                f"the server names a kept record by digest {ref.sha256[:16]}…, what this agent got has {found[:16]}…. "
                "Do server and agent run the same version? Nothing was trained on it"
            )
        return Pinned(record.groups, record.info, found)
