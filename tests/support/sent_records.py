"""Records the arrays that agents in this process send to their server."""

from __future__ import annotations

import pytest

from fedloom.core.messages import PayloadRef
from fedloom.core.records import Record
from fedloom.simulation.in_process import InProcessChannel


def sent_records(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """A list that grows with every record an agent stores for the server."""
    sent, store = list[Record](), InProcessChannel.store

    def noted(self: InProcessChannel, record: Record, run_id: str) -> PayloadRef:
        sent.append(record)
        return store(self, record, run_id)

    monkeypatch.setattr(InProcessChannel, "store", noted)
    return sent
