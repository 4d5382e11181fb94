"""`python -m benchmarks`: fedloom, the bare floor and Flower's own engine on the same work, in one run."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks import adapters, report
from benchmarks.data import CHOSEN, data_folder, is_real
from benchmarks.meter import measure
from benchmarks.spiking import table as spiking_table
from benchmarks.work import WORKS, Task, state_arrays

RUNNERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bare1": ("benchmarks.bare", ("--processes", "1")),
    "bare2": ("benchmarks.bare", ("--processes", "2")),
    "process": ("benchmarks.ours", ("--runtime", "process")),
    "process-whole": ("benchmarks.ours", ("--runtime", "process", "--one-group-each")),
    "process-saving": ("benchmarks.ours", ("--runtime", "process", "--every-checkpoint")),
    "ray": ("benchmarks.ours", ("--runtime", "ray")),
    "flower": ("benchmarks.flower_engine", ()),
}
OFTEN = ("bare2", "process", "process-whole")
"""Runners whose ratio is a promise: measured in every repeat; the others in the first only."""


def train(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Every runner on every workload, repeats interleaved so that all meet the same neighbours on the machine."""
    results: dict[str, Any] = {}
    distances: dict[str, dict[str, float]] = {}
    for work in options.works:
        results[work] = {kind: [] for kind in options.kinds}
        rounds = WORKS[work].quick_rounds if options.quick else WORKS[work].rounds
        for repeat in range(options.repeats):
            for kind in options.kinds if repeat == 0 else [kind for kind in options.kinds if kind in OFTEN]:
                module, extra = RUNNERS[kind]
                out = folder / f"{work}-{kind}-{repeat}"
                say(f"{work}  {report.NAMES[kind].strip()}, {rounds} rounds …")
                spent = measure(module, [work, "--rounds", str(rounds), *extra, "--out", str(out)], out / "log.txt")
                results[work][kind].append(spent | json.loads((out / "result.json").read_text(encoding="utf-8")))
        floor = folder / f"{work}-bare2-0" / "model.safetensors"
        if floor.exists():
            distances[work] = {
                kind: distance(work, floor, folder / f"{work}-{kind}-0" / "model.safetensors")
                for kind in options.kinds
                if kind != "bare2"
            }
    return results, distances


def distance(work: str, left: Path, right: Path) -> float:
    """How far apart two models are, as a share of how far training has moved them (Euclidean norms)."""
    start = state_arrays(Task(WORKS[work]).initial_model())
    one, other = load_file(left), load_file(right)
    apart = sum(float(np.square(one[name] - other[name]).sum()) for name in start)
    moved = sum(float(np.square(one[name] - array).sum()) for name, array in start.items())
    return float(np.sqrt(apart / moved))


def orchestrate(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """No-op rounds under each runtime, and with few and with many clients (interleaved; the cheapest run of each)."""
    runtimes = ("inline", "process") if options.quick else ("inline", "process", "ray")
    compared = [("process", 100), ("process", 10_000)] * (1 if options.quick else 3)
    rounds = 60 if options.quick else 200
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for case in [*((runtime, 1000) for runtime in runtimes), *compared]:
        runtime, clients = case
        say(f"no-op rounds, {runtime}, {clients} clients …")
        out = folder / f"noop-{runtime}-{clients}"
        arguments = ["--runtime", runtime, "--clients", str(clients), "--rounds", str(rounds), "--out", str(out)]
        spent = measure("benchmarks.orchestration", arguments, out / "log.txt")
        row = json.loads((out / "result.json").read_text(encoding="utf-8")) | {"PSS MB": round(spent["pss_mb"])}
        best = rows.setdefault(case, row)
        if row["driver CPU ms/round"] < best["driver CPU ms/round"]:
            rows[case] = row
    return list(rows.values())


def transfer(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A large model over the wire."""
    rows = []
    for megabytes in (100, 3072) if options.slow else (100,):
        say(f"{megabytes} MB down and up …")
        out = folder / f"transfer-{megabytes}"
        measure("benchmarks.transfer", ["--megabytes", str(megabytes), "--out", str(out)], out / "log.txt")
        rows += json.loads((out / "result.json").read_text(encoding="utf-8"))
    return rows


def spiking(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Groups of a spiking network's clients as one program, against the plain loop."""
    say("spiking networks, group program and plain loop …")
    out = folder / "spiking"
    measure("benchmarks.spiking", ["--rounds", "3" if options.quick else "10", "--out", str(out)], out / "log.txt")
    rows: list[dict[str, Any]] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return rows


def lora(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Rounds of LoRA on a transformer, beside Flower with PEFT; needs the packages of the text presets."""
    if options.quick:
        return []
    say("LoRA rounds of MiniLM, fedloom and Flower with PEFT …")
    return adapters.compare(6, folder / "adapters")


def latency(folder: Path) -> list[dict[str, Any]]:
    """What a user waits for."""
    say("first round, rounds of two idle clients …")
    out = folder / "latency"
    measure("benchmarks.latency", ["--out", str(out)], out / "log.txt")
    rows: list[dict[str, Any]] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return rows


def say(line: str) -> None:
    """Progress, apart from the results on stdout."""
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no Ray: about two minutes")
    parser.add_argument("--slow", action="store_true", help="also stream a 3 GB model (needs 10 GB of memory)")
    parser.add_argument("--works", nargs="*", choices=WORKS, help="training workloads (default: all; B only if quick)")
    parser.add_argument("--kinds", nargs="*", choices=RUNNERS, help="runners (default: all but process-saving)")
    parser.add_argument("--repeats", type=int, help="repeats of the bare loop and of fedloom (default 2; 1 if quick)")
    parser.add_argument("--no-micro", action="store_true", help="leave out no-op rounds, transfers, spiking")
    parser.add_argument("--data", type=Path, help="folder of IDX files (default: Debian's Fashion-MNIST, else noise)")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    options = parser.parse_args(arguments)
    everything = [kind for kind in RUNNERS if kind != "process-saving"]
    options.works = options.works if options.works is not None else (["B"] if options.quick else list(WORKS))
    options.kinds = options.kinds or (["bare2", "process", "flower"] if options.quick else everything)
    options.repeats = options.repeats or (1 if options.quick else 2)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.data is not None:
        os.environ[CHOSEN] = str(options.data.resolve())
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before the start, data: {data_folder() if is_real() else 'noise'}")
    if load > 0.5:
        print("the machine is not idle: trust CPU seconds more than wall clock")
    with tempfile.TemporaryDirectory(prefix="fedloom-bench-") as name:
        folder = Path(name)
        results, distances = train(options, folder)
        print(report.training_table(results, distances), flush=True)
        noop = [] if options.no_micro else orchestrate(options, folder)
        waited = [] if options.no_micro else latency(folder)
        moved = [] if options.no_micro else transfer(options, folder)
        fired = [] if options.no_micro else spiking(options, folder)
        adapted = [] if options.no_micro else lora(options, folder)
    print(report.micro_table("Rounds in which clients do nothing (50 clients, 10 kB model)", noop))
    by_clients = {row["clients"]: row["driver CPU ms/round"] for row in noop if row["runtime"] == "process"}
    if by_clients:
        print(f"  driver CPU per round, 10,000 clients / 100 clients: {by_clients[10_000] / by_clients[100]:.2f}x")
    print(report.micro_table("What a user waits for", waited))
    print(report.micro_table("A model over gRPC between processes without shared memory", moved))
    if fired:
        print(f"\n{spiking_table(fired)}")
    if adapted:
        print(adapters.table(adapted))
    if options.json is not None:
        micro = {"noop": noop, "latency": waited, "transfer": moved, "spiking": fired, "adapters": adapted}
        everything = {"training": results, "summary": report.summary(results), **micro}
        options.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
