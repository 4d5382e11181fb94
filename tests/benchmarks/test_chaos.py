"""A handful of the fault harness's schedules and of the fuzzer's messages; the rest by `make chaos` and `make fuzz`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import broadcast, endurance, idle
from benchmarks.chaos import kills
from benchmarks.chaos import schedule as schedules
from benchmarks.chaos.fleet import Zygote
from benchmarks.chaos.network import Network, network
from benchmarks.chaos.play import Undisturbed, play, undisturbed
from benchmarks.chaos.schedule import HOSTILE, NODES, SERVER, Fault, Schedule, draw
from benchmarks.fuzz import play as play_fuzz
from benchmarks.fuzz.samples import at_work
from benchmarks.fuzz.sender import Fuzzer
from google.protobuf.message import DecodeError

from fedloom.proto.v1.fleet_pb2 import FromAgentBatch
from fedloom.server.access.gate import ALLOWED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rig() -> Iterator[tuple[Zygote, Network | None, Undisturbed]]:
    with contextlib.closing(Zygote()) as zygote, network((*NODES, HOSTILE)) as links:
        yield zygote, links, undisturbed(1)


def fault(kind: str, target: str = SERVER, **values: float) -> Fault:
    return Fault(kind=kind, target=target, round=2, delay_s=0.02, lasts_s=0.3, **values)


def by_hand(*faults: Fault, members: bool = True, **values: object) -> Schedule:
    return Schedule(seed=1, index=0, members=members, faults=faults, **values)  # type: ignore[arg-type]


def test_a_schedule_follows_from_its_number() -> None:
    drawn = [draw(1, index) for index in range(200)]
    assert drawn == [draw(1, index) for index in range(200)] != [draw(2, index) for index in range(200)]
    assert {fault.kind for each in drawn for fault in each.faults} == set(schedules.KINDS)
    assert {each.lie for each in drawn} == {"", *schedules.LIES}
    assert all(each.members for each in drawn if each.lie), "who shares the server's memory is trusted"
    assert all(list(each.faults) == sorted(each.faults, key=lambda f: (f.round, f.delay_s)) for each in drawn)


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(
            by_hand(fault("kill server"), fault("kill node", "east"), lie="not a number"), marks=pytest.mark.slow
        ),
        by_hand(fault("full disk"), fault("clock", amount=-86400.0), fault("cut", "north"), members=False, noise=True),
    ],
    ids=str,
)
def test_a_run_survives(chosen: Schedule, rig: tuple[Zygote, Network | None, Undisturbed], tmp_path: Path) -> None:
    zygote, links, want = rig
    outcome = play(chosen, tmp_path, zygote, links, want)
    assert outcome.sound, (outcome, (tmp_path / "log.txt").read_text(encoding="utf-8")[-3000:])
    assert outcome.refused > 0


def test_a_killed_server_assigns_nothing_again_whose_answer_it_had(
    rig: tuple[Zygote, Network | None, Undisturbed], tmp_path: Path
) -> None:
    found = kills.play(1, 0, 2, tmp_path, rig[0], kills.undisturbed(1, 8))
    assert found.sound and found.kills == 2, (found, (tmp_path / "log.txt").read_text(encoding="utf-8")[-3000:])
    assert found.restored >= found.accepted > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [1000, 1010])
def test_ten_more_schedules(first: int, rig: tuple[Zygote, Network | None, Undisturbed], tmp_path: Path) -> None:
    zygote, links, _ = rig
    want = undisturbed(7)
    outcomes = [play(draw(7, first + index), tmp_path / str(index), zygote, links, want) for index in range(10)]
    assert [(outcome.schedule.index, outcome) for outcome in outcomes if not outcome.sound] == []


@pytest.fixture(scope="module")
def fuzzed() -> dict[str, Any]:
    return play_fuzz.fuzz(1000, seed=3)


@pytest.mark.parametrize("kind", ["token", "members"])
def test_broken_messages_are_answered_and_change_nothing(fuzzed: dict[str, Any], kind: str) -> None:
    found = fuzzed[kind]
    assert found["alive"] and found["sent"] >= 400 and found["changed"] == []
    assert not [wrong for call in found["calls"].values() for wrong in call["wrong"]]
    assert found["held"]["threads"] < 60
    assert found["rss_mb"][-1] - found["rss_mb"][0] < 60, "an announced frame takes no memory before it comes"


def test_every_call_of_every_service_gets_broken_messages(fuzzed: dict[str, Any]) -> None:
    want = {*ALLOWED, "Enroll/Authority", "Enroll/Join"}
    assert set(fuzzed["members"]["calls"]) == want
    assert set(fuzzed["token"]["calls"]) == {
        call for call in want if call.startswith(("Fleet/", "Control/", "Results/"))
    }
    assert all(call["sent"] >= 10 for found in fuzzed.values() for call in found["calls"].values())
    joins = fuzzed["members"]["calls"]["Enroll/Join"]
    assert joins["taken"] > 5 and joins["INVALID_ARGUMENT"] > 5, "some certificates were signed, and looked at"


def test_the_fuzzers_messages_are_broken_and_readable_ones_among_them() -> None:
    samples = at_work("nobody")
    fuzzer = Fuzzer({}, samples, seed=1)
    sound = {message.SerializeToString() for each in samples.values() for message in each}
    drawn = [fuzzer.broken("Fleet/Work") for _ in range(300)]
    assert sum(data in sound for data in drawn) < 90

    def readable(data: bytes) -> bool:
        try:
            FromAgentBatch.FromString(data)
        except DecodeError:
            return False
        return True

    assert sum(map(readable, drawn)) > 150


@pytest.mark.slow
@pytest.mark.parametrize("members", [False, True])
def test_idle_agents_are_counted(monkeypatch: pytest.MonkeyPatch, members: bool) -> None:
    monkeypatch.chdir(ROOT)
    row = idle.measure(5, seconds=1.0, members=members)
    assert row["online at the end"] == 5 and row["server PSS MB"] > 10


@pytest.mark.slow
def test_many_streams_bring_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    one, many = broadcast.measure(agents=3, megabytes=8, repeats=2)
    assert (one["streams"], many["streams"]) == (1, 3) and one["of one stream"] == 1.0


def test_a_slope_is_of_what_comes_after_the_warm_up() -> None:
    found = [(number, 200.0 if number < 30 else 100.0 + number / 1024) for number in range(10, 130, 10)]
    slope, apart = endurance.line(found)
    assert slope == pytest.approx(1.0) and apart == pytest.approx(0.0, abs=1e-9)
