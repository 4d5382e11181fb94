"""One schedule, played: start, disturb, wait for the end, and compare with the run nobody disturbed."""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos import digits
from benchmarks.chaos.fleet import Fleet, Zygote, small_disk
from benchmarks.chaos.intruder import Intruder
from benchmarks.chaos.network import Network
from benchmarks.chaos.schedule import ROUNDS, SERVER, Fault, Schedule
from fedloom import api
from fedloom.client.control import ControlClient
from fedloom.core.history import RoundRecord

DISK_MB = 16
"""The disk that fills up; a checkpoint takes a quarter of a megabyte."""
_PATIENCE_S = 60.0
"""Seconds after which a run that has not ended counts as stuck."""
SAME = ("cohort", "num_examples", "metrics", "evaluation")
"""What a round's record must have in common with the undisturbed run's, when nobody is missing."""


@dataclass(kw_only=True)
class Outcome:
    """What came of a schedule."""

    schedule: Schedule
    status: str = "stuck"
    """`done`, `resumed` (it failed, and went on once the cause was gone), `failed` or `stuck`."""
    error: str = ""
    rounds: list[int] = field(default_factory=list)
    wrong_rounds: list[int] = field(default_factory=list)
    """Rounds with other clients, examples, losses or evaluations than without the faults."""
    same_bits: bool = False
    missing: int = 0
    """Clients' answers that were lost for good."""
    reassigned: int = 0
    stale: int = 0
    duplicates: int = 0
    restarts: int = 0
    ended_alone: list[str] = field(default_factory=list)
    recovery_s: float | None = None
    """The longest time from a started-again server to its next finished round."""
    refused: int = 0
    """Calls of the intruder that were refused."""
    let_in: int = 0
    server_mb: float = 0.0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether every promise was kept: each round once, the same bits, nobody let in, no program ended by itself."""
        return (
            self.status in ("done", "resumed")
            and self.rounds == list(range(1, ROUNDS + 1))
            and not self.wrong_rounds
            and self.same_bits
            and not self.let_in
            and not self.missing
        )


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """The run as it is without faults."""

    sha256: str
    rounds: Mapping[int, RoundRecord]


def undisturbed(seed: int) -> Undisturbed:
    """In one thread of this process."""
    result = api.run(digits.experiment(seed), keep=False)
    assert result.summary.model_sha256 is not None
    return Undisturbed(sha256=result.summary.model_sha256, rounds={r.round: r for r in result.history})


def play(schedule: Schedule, folder: Path, zygote: Zygote, network: Network | None, want: Undisturbed) -> Outcome:
    """Run the experiment under the schedule's faults; never raises for what a fault has done."""
    folder.mkdir(parents=True, exist_ok=True)
    outcome, begin = Outcome(schedule=schedule), time.monotonic()
    full = any(fault.kind == "full disk" for fault in schedule.faults)
    with small_disk(folder / "state", DISK_MB if full else 256):
        fleet = Fleet(schedule, folder, zygote, network)
        intruder: Intruder | None = None
        try:
            fleet.start(SERVER)
            fleet.wait_until_ready()
            revoked = fleet.enroll()
            for name in fleet.nodes:
                fleet.start(name)
            intruder = Intruder(f"127.0.0.1:{fleet.port}", schedule.index, revoked)
            with ControlClient(f"127.0.0.1:{fleet.port}", fleet.token, identity=fleet.admin) as control:
                run = fleet.state / "runs" / control.submit(digits.experiment(schedule.seed))
            _Player(schedule, fleet, network, run, outcome).play()
            _judge(run, want, outcome)
        except Exception as exc:
            outcome.error = outcome.error or f"{type(exc).__name__}: {exc}"
        finally:
            outcome.server_mb = max(outcome.server_mb, fleet.rss_mb())
            fleet.close()
            if intruder is not None:
                intruder.close()
                outcome.refused, outcome.let_in = intruder.refused, intruder.let_in
            if network is not None:
                network.heal()
    outcome.ended_alone, outcome.seconds = fleet.ended_alone, time.monotonic() - begin
    return outcome


class _Player:
    """Does what a schedule says, each thing when its time has come."""

    def __init__(self, schedule: Schedule, fleet: Fleet, network: Network | None, run: Path, outcome: Outcome) -> None:
        self._fleet, self._network, self._run, self._outcome = fleet, network, run, outcome
        self._coming = list(schedule.faults)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._restarted: tuple[float, int] | None = None
        self._rounds = 0

    def play(self) -> None:
        """Until the run has ended and everything that was broken is mended."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            self._rounds = max(self._rounds, self._count())
            self._note_recovery()
            while self._coming and self._coming[0].round <= self._rounds:
                fault = self._coming.pop(0)
                self._at(time.monotonic() + fault.delay_s, lambda fault=fault: self._begin(fault))  # type: ignore[misc]
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2]()
            self._fleet.supervise()
            summary = self._summary()
            if summary is not None and not self._due and (summary["status"] != "done" or not self._coming):
                self._ended(summary)
                return
            time.sleep(0.01)
        self._outcome.error = f"no end after {_PATIENCE_S:.0f} s, {self._rounds} rounds done"

    def _ended(self, summary: Mapping[str, Any]) -> None:
        self._outcome.status, self._outcome.error = summary["status"], summary["error"] or ""
        if summary["status"] == "failed":
            self._fleet.resume(self._run)
            again = self._summary()
            if again is not None and again["status"] == "done":
                self._outcome.status = "resumed"

    def _begin(self, fault: Fault) -> None:
        fleet, mended = self._fleet, time.monotonic() + fault.lasts_s
        match fault.kind:
            case "kill server" | "kill node":
                if fault.target == SERVER:
                    self._outcome.server_mb = max(self._outcome.server_mb, fleet.rss_mb())
                fleet.kill(fault.target)
                self._at(mended, lambda: self._restart(fault.target))
            case "cut":
                cut, mend = self._cutting(fault.target)
                cut()
                self._at(mended, mend)
            case "slow" if self._network is not None:
                self._network.slow(fault.target, fault.amount)
                self._at(mended, lambda: self._network.fast(fault.target) if self._network else None)
            case "full disk":
                ballast = fleet.state / "ballast"
                _fill(ballast)
                self._at(mended, ballast.unlink)
            case "clock":
                fleet.move_clock(fault.target, fault.amount)

    def _cutting(self, node: str) -> tuple[Callable[[], None], Callable[[], None]]:
        network, fleet = self._network, self._fleet
        if network is None:
            return (lambda: fleet.freeze(node, True)), (lambda: fleet.freeze(node, False))
        return (lambda: network.cut(node)), (lambda: network.mend(node))

    def _restart(self, name: str) -> None:
        if self._fleet.alive(name):
            return  # killed twice, and started again already
        self._outcome.restarts += 1
        self._fleet.start(name)
        if name == SERVER:
            self._restarted = (time.monotonic(), self._count())

    def _note_recovery(self) -> None:
        if self._restarted is not None and self._count() > self._restarted[1]:
            seconds = time.monotonic() - self._restarted[0]
            self._outcome.recovery_s = max(seconds, self._outcome.recovery_s or 0.0)
            self._restarted = None

    def _at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (moment, next(self._counter), act))

    def _count(self) -> int:
        try:
            return (self._run / "rounds.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def _summary(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self._run / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found


def _fill(ballast: Path) -> None:
    """Write until nothing more fits."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def _judge(run: Path, want: Undisturbed, outcome: Outcome) -> None:
    """Compare the folder with the undisturbed run."""
    lines = [
        RoundRecord.model_validate_json(line)
        for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    outcome.rounds = [record.round for record in lines]
    for record in lines:
        other = want.rounds[record.round]
        if any(getattr(record, name) != getattr(other, name) for name in SAME):
            outcome.wrong_rounds.append(record.round)
        outcome.missing += len(record.failures)
        outcome.reassigned += record.reassigned
        outcome.stale += record.stale
        outcome.duplicates += record.duplicates
    if (run / "summary.json").exists():
        sha256 = json.loads((run / "summary.json").read_text(encoding="utf-8"))["model_sha256"]
        outcome.same_bits = sha256 == want.sha256
