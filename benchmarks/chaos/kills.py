"""`python -m benchmarks.chaos.kills`: the server killed twenty times in the middle of rounds, at its own settings.

Each run is killed as soon as a drawn number of its six answers of a round is on the disk, and is started again after a
drawn pause. Told: whether an accepted answer was asked for again or folded twice, whether the nodes stayed, how long it
took until the next answer and the next round, and whether the final bits are those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos import digits
from benchmarks.chaos.fleet import Fleet, Zygote
from benchmarks.chaos.play import SAME, Undisturbed
from benchmarks.chaos.schedule import NODES, SERVER, Schedule
from benchmarks.report import micro_table
from fedloom import api
from fedloom.client.control import ControlClient
from fedloom.core.config import Experiment
from fedloom.core.history import RoundRecord
from fedloom.core.seeds import generator

COHORT = 6
"""Clients of a round; each is a group of its own, so that answers come one by one."""
_PATIENCE_S = 120.0
_LOOK_S = 0.001


@dataclass(kw_only=True)
class Kills:
    """What came of one run."""

    members: bool
    rounds: int = 0
    kills: int = 0
    accepted: int = 0
    """Answers on the disk when the server was killed in their round."""
    asked_again: int = 0
    """Of these, how many clients were trained once more for."""
    in_flight: int = 0
    """Trainings done again because their answer had not been accepted."""
    restored: int = 0
    """Answers folded from the disk, by the rounds' records."""
    wrong_rounds: int = 0
    """Rounds lost, twice, or with other clients, examples, losses or evaluations than undisturbed."""
    nodes_stayed: bool = False
    same_bits: bool = False
    answer_s: list[float] = field(default_factory=list)
    """From the server's start to the next answer on the disk, for each kill."""
    round_s: list[float] = field(default_factory=list)
    """From the server's start to the next finished round."""
    error: str = ""

    @property
    def sound(self) -> bool:
        """Whether the promise was kept, but for its seconds, which are told."""
        return not (self.error or self.asked_again or self.wrong_rounds) and self.nodes_stayed and self.same_bits


def experiment(seed: int, rounds: int) -> Experiment:
    """The fault harness's, with a client in each group."""
    values = digits.experiment(seed).to_dict()
    values |= {"rounds": rounds, "cohort": COHORT, "round": {"group_size": 1}}
    return Experiment.parse(values)


def undisturbed(seed: int, rounds: int) -> Undisturbed:
    """The run without kills, in one thread of this process."""
    result = api.run(experiment(seed, rounds), keep=False)
    assert result.summary.model_sha256 is not None
    return Undisturbed(sha256=result.summary.model_sha256, rounds={r.round: r for r in result.history})


def play(seed: int, index: int, kills: int, folder: Path, zygote: Zygote, want: Undisturbed) -> Kills:
    """One run, killed `kills` times, each time in another round."""
    rng, rounds = generator(seed, "kills", index), len(want.rounds)
    found = Kills(members=index % 2 == 0)
    fleet = Fleet(Schedule(seed=seed, index=index, members=found.members), folder, zygote, None, quick=False)
    ledger, accepted = folder / "ledger.txt", set[tuple[int, int]]()
    try:
        fleet.start(SERVER)
        fleet.wait_until_ready()
        fleet.enroll()
        for name in NODES:
            fleet.start(name)
        pids = {name: fleet.pid(name) for name in NODES}
        with ControlClient(f"127.0.0.1:{fleet.port}", fleet.token, identity=fleet.admin) as control:
            run = fleet.state / "runs" / control.submit(experiment(seed, rounds))
        for number in sorted(int(at) + 1 for at in rng.choice(rounds // 2, kills, replace=False)):
            at = _kill(fleet, run, number, int(rng.integers(1, COHORT)), float(rng.uniform(0.1, 3.0)), found)
            accepted |= {(round_, want.rounds[round_].cohort[group]) for round_, group in at}
        _wait(run, lambda: (run / "summary.json").exists())
        found.nodes_stayed = all(fleet.alive(name) and fleet.pid(name) == pids[name] for name in NODES)
        _judge(run, ledger, accepted, want, found)
    except Exception as exc:
        found.error = f"{type(exc).__name__}: {exc}"
    finally:
        fleet.close()
    return found


def _kill(fleet: Fleet, run: Path, number: int, least: int, pause_s: float, found: Kills) -> set[tuple[int, int]]:
    """Kill the server once a round has that many answers, the first to be met from `number` on, and start it again.

    Returns:
        Round and group of the answers that were on the disk.
    """

    def begun() -> bool:
        now = _count(run) + 1
        return now >= number and sum(at == now for at, _ in _answers(run)) >= least

    _wait(run, begun)
    fleet.kill(SERVER)
    on_disk, done = _answers(run), _count(run)
    found.kills += 1
    time.sleep(pause_s)
    begin = time.monotonic()
    fleet.start(SERVER)
    _wait(run, lambda: _answers(run) - on_disk or _count(run) > done)
    found.answer_s.append(time.monotonic() - begin)
    _wait(run, lambda: _count(run) > done)
    found.round_s.append(time.monotonic() - begin)
    return on_disk


def _wait(run: Path, ready: Callable[[], object]) -> None:
    """Until something is true, or the run has failed."""
    end = time.monotonic() + _PATIENCE_S
    while not ready():
        summary = run / "summary.json"
        if summary.exists() and (error := json.loads(summary.read_text(encoding="utf-8"))["error"]):
            raise RuntimeError(f"the run failed: {error}")
        if time.monotonic() > end:
            raise TimeoutError(f"nothing for {_PATIENCE_S:.0f} s")
        time.sleep(_LOOK_S)


def _answers(run: Path) -> set[tuple[int, int]]:
    """Round and group of every training answer on the disk."""
    names = [path.name.split(".")[0].split("-") for path in (run / "answers").glob("*-0-*.safetensors")]
    return {(int(round_), int(group)) for round_, _, group in names}


def _count(run: Path) -> int:
    with contextlib.suppress(OSError):
        return (run / "rounds.jsonl").read_bytes().count(b"\n")
    return 0


def _judge(run: Path, ledger: Path, accepted: set[tuple[int, int]], want: Undisturbed, found: Kills) -> None:
    """Compare the folder with the undisturbed run, and the ledger with what had been accepted."""
    records = [
        RoundRecord.model_validate_json(line)
        for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found.rounds, found.accepted = len(records), len(accepted)
    found.restored = sum(record.restored for record in records)
    found.wrong_rounds = sum(
        record.failures != [] or any(getattr(record, name) != getattr(want.rounds[record.round], name) for name in SAME)
        for record in records
    )
    found.wrong_rounds += [record.round for record in records] != sorted(want.rounds)
    trained = Counter(tuple(map(int, line.split())) for line in ledger.read_text(encoding="utf-8").splitlines())
    found.asked_again = sum(trained[at] - 1 for at in accepted)
    found.in_flight = sum(times - 1 for at, times in trained.items() if at not in accepted)
    found.same_bits = json.loads((run / "summary.json").read_text(encoding="utf-8"))["model_sha256"] == want.sha256


def table(outcomes: Sequence[Kills]) -> str:
    """A row for each run, and the sum."""
    rows = [
        {
            "mode": "members" if each.members else "token",
            "rounds": each.rounds,
            "kills": each.kills,
            "accepted at a kill": each.accepted,
            "asked again": each.asked_again,
            "in flight, trained again": each.in_flight,
            "wrong rounds": each.wrong_rounds,
            "nodes stayed": "yes" if each.nodes_stayed else "NO",
            "same bits": "yes" if each.same_bits else "NO",
            "next answer, s": f"{max(each.answer_s, default=0.0):.2f}",
            "next round, s": f"{max(each.round_s, default=0.0):.2f}",
        }
        for each in outcomes
    ]
    kills = sum(each.kills for each in outcomes)
    reported = [micro_table(f"{kills} kills of the server in the middle of a round", rows)]
    reported += [f"  {each.error}" for each in outcomes if each.error]
    return "\n".join(reported)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kills", type=int, default=4, help="of each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fedloom-kills-") as name, contextlib.closing(Zygote()) as zygote:
        want = undisturbed(options.seed, 4 * options.kills)
        outcomes = []
        for index in range(options.runs):
            (folder := Path(name) / str(index)).mkdir()
            outcomes.append(play(options.seed, index, options.kills, folder, zygote, want))
    print(table(outcomes))
    if options.json is not None:
        options.json.write_text(
            json.dumps([dataclasses.asdict(each) for each in outcomes], indent=1) + "\n", encoding="utf-8"
        )
    return 0 if all(each.sound for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
