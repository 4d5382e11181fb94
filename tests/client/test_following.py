"""Following a run to its end: each event once, over broken streams, sessions that go on, and a server that is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import pytest

from fedloom.client.control import RunRow
from fedloom.client.following import PATIENCE_S, Follower
from fedloom.core.errors import NotFound, ServerUnreachable
from fedloom.core.records import JsonObject

Step = Callable[[], Iterator[JsonObject]]
STARTED, DONE = {"event": "RunStarted"}, {"event": "RunFinished", "status": "done"}
CUT = {"event": "RunFinished", "status": "interrupted"}


def rounds(*numbers: int) -> list[JsonObject]:
    return [{"event": "RoundFinished", "round": number} for number in numbers]


class Server:
    """Answers each watch with the next of some streams, and each list with the next of some statuses."""

    def __init__(self, streams: Sequence[Sequence[JsonObject | Exception]], statuses: Sequence[str]) -> None:
        self.streams, self.statuses = list(streams), list(statuses)

    def watch(self, run_id: str) -> Iterator[JsonObject]:
        for item in self.streams.pop(0):
            if isinstance(item, Exception):
                raise item
            yield json.loads(json.dumps(item))

    def runs(self) -> Sequence[RunRow]:
        status = self.statuses.pop(0)
        if status == "away":
            raise ServerUnreachable("no response")
        row = RunRow(run_id="r", name="x", status=status, rounds_done=1, rounds=1, error="why")
        return [] if status == "gone" else [row]


def followed(server: Server) -> tuple[list[JsonObject], Follower, list[str]]:
    said, now = list[str](), [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    follower = Follower(server, "r", said.append, sleep=sleep, clock=lambda: now[0])
    return list(follower.events()), follower, said


def test_a_run_that_ends_ends_it() -> None:
    events, follower, said = followed(Server([[STARTED, *rounds(1), DONE]], ["done"]))
    assert events == [STARTED, *rounds(1), DONE] and not said
    assert follower.row is not None and follower.row.status == "done"


def test_every_event_comes_once_over_a_broken_stream() -> None:
    progress: JsonObject = {"event": "ClientsDone", "done": 1}
    broken = ServerUnreachable("broke")
    streams: list[list[JsonObject | Exception]] = [
        [STARTED, progress, *rounds(1), broken],
        [broken],
        [STARTED, *rounds(1, 2), progress, progress, *rounds(3), DONE],
    ]
    events, _, said = followed(Server(streams, ["done"]))
    assert [event for event in events if event != progress] == [STARTED, *rounds(1, 2, 3), DONE]
    assert len(said) == 1, "said once for one absence"


def test_a_session_that_ends_with_its_server_is_no_end() -> None:
    streams = [[STARTED, *rounds(1), CUT], [STARTED, *rounds(1), CUT, STARTED, *rounds(2), DONE]]
    events, _, _ = followed(Server(streams, ["queued", "done"]))
    assert events == [STARTED, *rounds(1), STARTED, *rounds(2), DONE]
    streams = [[STARTED, *rounds(1), CUT], [STARTED, *rounds(1), CUT]]
    events, _, _ = followed(Server(streams, ["away", "interrupted"]))
    assert events == [STARTED, *rounds(1), CUT]


def test_one_that_never_began_ends_without_an_event() -> None:
    events, follower, _ = followed(Server([[]], ["failed"]))
    assert events == [] and follower.row is not None and follower.row.error == "why"


def test_a_deleted_run_and_a_server_that_stays_away_are_errors() -> None:
    with pytest.raises(NotFound, match="'r' is no longer on the server"):
        followed(Server([[STARTED]], ["gone"]))
    away = [[ServerUnreachable("no response")]] * int(PATIENCE_S)
    server = Server(away, [])
    with pytest.raises(ServerUnreachable):
        followed(server)
    assert 0 < len(server.streams) < PATIENCE_S - PATIENCE_S / 20
