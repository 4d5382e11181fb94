"""A channel without a server: payloads are records, and nothing but payloads passes."""

from __future__ import annotations

import numpy as np

from fedloom.core.frames import encode
from fedloom.core.messages import FromAgent, Hello, PayloadRef, ToAgent, Welcome
from fedloom.core.records import Groups, Record


class PayloadChannel:
    """As much of a channel as an executor needs; what is stored is copied."""

    def open(self, hello: Hello) -> Welcome:
        raise AssertionError("an executor opens no channel")

    def send(self, message: FromAgent) -> None:
        raise AssertionError("an executor sends no message")

    def receive(self, timeout_s: float) -> ToAgent | None:
        raise AssertionError("an executor receives no message")

    def fetch(self, ref: PayloadRef) -> Record:
        assert ref.record is not None
        return ref.record

    def store(self, record: Record, run_id: str) -> PayloadRef:
        return PayloadRef(size=len(encode(record)), record=Record(self.copies(record), record.info))

    def lease(self, record: Record, run_id: str) -> Groups:
        return {g: {n: np.empty(a.shape, a.dtype) for n, a in arrays.items()} for g, arrays in record.groups.items()}

    def recycle(self, run_id: str) -> None:
        """Nothing is leased from a pool."""

    def close(self) -> None:
        """Nothing is open."""

    @staticmethod
    def copies(record: Record) -> Groups:
        return {g: {n: np.array(a) for n, a in arrays.items()} for g, arrays in record.groups.items()}
