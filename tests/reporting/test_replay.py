from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedloom.core.errors import BadMessage
from fedloom.core.events import ClientLost, NodeChanged, RoundFinished, RunFinished
from fedloom.core.records import ClientFailure
from fedloom.reporting.replay import event_of
from fedloom.server.store.run_store import event_json


def test_events_come_back_as_they_were(runs: Any, tmp_path: Path) -> None:
    failure = ClientFailure(client=3, round=1, stage="train", error="ValueError", message="x")
    for event in (
        NodeChanged(node="ray-0", state="lost", reason="gone"),
        ClientLost(run_id="r", failure=failure),
        RoundFinished(run_id="r", record=runs.round(1, [0, 3], failures=[failure])),
        RunFinished(run_id="r", summary=runs.summary(tmp_path, [])),
    ):
        assert event_of(json.loads(json.dumps(event_json(event)))) == event


@pytest.mark.parametrize("values", [{}, {"event": "Nonsense"}, {"event": "RoundStarted", "round": 1},
                                    {"event": "RoundStarted", "run_id": "r", "round": "x", "cohort": 1}])  # fmt: skip
def test_what_is_no_event_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BadMessage, match="event"):
        event_of(values)
