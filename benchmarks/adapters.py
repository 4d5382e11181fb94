"""Rounds of LoRA on a 22 M-parameter transformer: what they cost beside the clients' training, and what moves.

`python -m benchmarks.adapters` compares fedloom with Flower's engine and PEFT on the same rounds: MiniLM on tweets, 8
clients, 4 in a round, 4 steps of 16 texts of up to 32 tokens each, rank 8 on query and value, AdamW.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.meter import Clock, measure
from benchmarks.ours import Laps
from fedloom.api import run
from fedloom.core.config import Experiment
from fedloom.core.events import Event, RoundFinished
from fedloom.core.history import RoundRecord

RANK, SCALE, LABELS = 8, 2.0, 3
CLIENTS, COHORT = 8, 4


def experiment(rounds: int, workers: int) -> Experiment:
    """The rounds, as fedloom runs them."""
    training = {"optimizer": "adamw", "learning_rate": 5e-4, "batch_size": 16, "max_steps": 4, "epochs": 4}
    return Experiment.parse(
        {
            "name": "bench-adapters",
            "rounds": rounds,
            "clients": CLIENTS,
            "cohort": COHORT,
            "strategy": {"name": "fedlora", "rank": RANK, "scale": SCALE},
            "workload": {
                "name": "text_classification",
                "data": {"source": "tweets", "max_examples": 1000},
                "partition": {"scheme": "iid"},
                "model": {"train": "all", "max_length": 32},
                "training": {**training, "device": "cpu"},
            },
            "evaluation": {"every": 0},
            "runtime": {"name": "process", "workers": workers},
        }
    )


class Copies:
    """A sink: after the second round, how often the base is in this host's memory."""

    def __init__(self) -> None:
        self.base_mb = self.copies = 0.0

    def write(self, event: Event) -> None:
        """Look into the maps of every process of the run."""
        if isinstance(event, RoundFinished) and event.record.round == 2:
            root, maps = psutil.Process(), list[Any]()
            for process in (root, *root.children(True)):
                with contextlib.suppress(psutil.NoSuchProcess):  # a helper of the loader's that has just ended
                    maps += process.memory_maps(grouped=False)
            shared = [each for each in maps if "/fedloom-" in each.path]
            largest = max(shared, key=lambda each: each.rss)
            self.base_mb = largest.rss / 1e6
            self.copies = sum(each.pss for each in shared if each.path == largest.path) / largest.rss

    def close(self) -> None:
        """Nothing to flush."""


def ours(rounds: int, workers: int) -> dict[str, Any]:
    """One run of fedloom's."""
    clock, copies = Clock(rounds), Copies()
    with tempfile.TemporaryDirectory() as folder:
        result = run(experiment(rounds, workers), out=Path(folder) / "run", sinks=(Laps(clock), copies))
    later = result.history[2:]
    frozen = {name for name in result.arrays if not name.startswith("head.")}
    base_bytes = sum(result.arrays[name].nbytes for name in frozen)
    return clock.result() | {
        "outside": statistics.median(outside(record, workers) for record in later),
        "down MB": statistics.median(record.traffic.wire_bytes_down for record in later) / 1e6,
        "up MB": statistics.median(record.traffic.wire_bytes_up for record in later) / 1e6,
        "base moved": sum(record.traffic.wire_bytes_down > base_bytes for record in later),
        "base MB": copies.base_mb,
        "base copies": copies.copies,
    }


def outside(record: RoundRecord, workers: int) -> float:
    """Share of a round's worker-seconds in which no client trained (with one worker: of the round)."""
    return 1.0 - record.timing.training_s / (workers * record.timing.total_s)


def compare(rounds: int, folder: Path) -> list[dict[str, Any]]:
    """One worker (which shows what is outside of training), two, and Flower with two."""
    rows = []
    for title, module, arguments in (
        ("fedloom, 1 process", "benchmarks.adapters", ["--workers", "1"]),
        ("fedloom, 2 processes", "benchmarks.adapters", ["--workers", "2"]),
        ("Flower + PEFT, 2 actors", "benchmarks.adapters_flower", []),
    ):
        out = folder / title.replace(" ", "-")
        spent = measure(module, ["--rounds", str(rounds), *arguments, "--out", str(out)], out / "log.txt")
        rows.append(
            {"": title, **json.loads((out / "result.json").read_text(encoding="utf-8")), "PSS MB": spent["pss_mb"]}
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text."""
    columns = {
        "wall_s": ("wall s", "{:.2f}"),
        "cpu_s": ("CPU s", "{:.2f}"),
        "first_round_s": ("1st round s", "{:.1f}"),
        "PSS MB": ("PSS MB", "{:.0f}"),
        "outside": ("no client trains", "{:.1%}"),
        "down MB": ("down MB", "{:.2f}"),
        "up MB": ("up MB", "{:.2f}"),
        "base copies": ("bases on host", "{:.2f}"),
    }
    heads = "".join(f"{head:>18}" for head, _ in columns.values())
    lines = ["", "A LoRA round of MiniLM (22 M parameters), rank 8 on query and value", " " * 26 + heads]
    for row in rows:
        cells = [form.format(row[name]) if name in row else "" for name, (_, form) in columns.items()]
        lines.append(f"  {row['']:24}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--workers", type=int, help="run fedloom alone with this many")
    parser.add_argument("--out", type=Path, help="folder for result.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fedloom-adapters-") as name:
        if options.workers is not None:
            result: Any = ours(options.rounds, options.workers)
        else:
            result = compare(options.rounds, Path(name))
            print(table(result))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
