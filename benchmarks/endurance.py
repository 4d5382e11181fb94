"""A thousand rounds on one server: whether its memory stays where it is.

A real server process (`fedloom.server.standing`: queue, gRPC, run folder, metrics) and two agents; clients send the
model back as it came. The server's resident memory is read after every tenth round; the slope is that of a straight
line through the last three quarters of it, by least squares.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.report import micro_table
from fedloom.client.app import run_client
from fedloom.client.control import ControlClient
from fedloom.core import local_token
from fedloom.core.config import Experiment
from fedloom.server.standing import ServerSettings, serve

_MB = 1 << 20
_EVERY = 10
"""Rounds between two readings."""
_WARM_UP = 0.25
"""Share of the readings that are not part of the line."""


def experiment(rounds: int, kilobytes: int, *, answers: bool = True) -> Experiment:
    """Rounds of 20 clients that do nothing, out of 100."""
    return Experiment.parse(
        {
            "name": "endurance",
            "rounds": rounds,
            "clients": 100,
            "cohort": 20,
            "strategy": "fedavg",
            "workload": {"name": str(Path(__file__).parent / "noop_workload.py"), "kilobytes": kilobytes},
            "evaluation": {"every": 0},
            "checkpoint": {"every": 10, "answers": answers},
        }
    )


def readings(rounds: int, kilobytes: int, *, answers: bool = True) -> list[tuple[int, float]]:
    """(round, resident MB of the server) of one run."""
    here = [sys.executable, "-m", "benchmarks.endurance"]
    with tempfile.TemporaryDirectory(prefix="fedloom-endurance-") as folder:
        server = subprocess.Popen([*here, "--serve", folder], stdout=subprocess.PIPE, encoding="utf-8")
        agents = list[subprocess.Popen[bytes]]()
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            agents = [subprocess.Popen([*here, "--agent", address, "--name", f"device-{i}"]) for i in (1, 2)]
            process, found = psutil.Process(server.pid), list[tuple[int, float]]()
            with ControlClient(address, local_token.find(address)) as control:
                run_id = control.submit(experiment(rounds, kilobytes, answers=answers))
                for event in control.watch(run_id):
                    number = event["record"]["round"] if event["event"] == "RoundFinished" else 0
                    if number and number % _EVERY == 0:
                        found.append((number, process.memory_info().rss / _MB))
                    ended = event["summary"] if event["event"] == "RunFinished" else {"status": "done"}
                    if ended["status"] != "done":
                        raise RuntimeError(f"the run ended as {ended['status']}: {ended['error']}")
            return found
        finally:
            programs: list[subprocess.Popen[bytes] | subprocess.Popen[str]] = [*agents, server]
            for program in programs:
                program.kill()
                program.wait()


def line(found: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Slope in KB a round, and the widest distance from the line in MB, without the warm-up."""
    kept = np.array(found[int(len(found) * _WARM_UP) :])
    slope, start = np.polyfit(kept[:, 0], kept[:, 1], 1)
    return float(slope) * 1024, float(np.abs(kept[:, 1] - (slope * kept[:, 0] + start)).max())


def curve(found: Sequence[tuple[int, float]], points: int = 10) -> str:
    """Some of the readings, evenly chosen, as text."""
    chosen = [found[round(index)] for index in np.linspace(0, len(found) - 1, min(points, len(found)))]
    return "  ".join(f"{number}: {megabytes:.1f}" for number, megabytes in chosen)


def measure(rounds: int, kilobytes: int, *, answers: bool = True) -> dict[str, Any]:
    """One run; its memory as one row, with every reading."""
    begin = time.perf_counter()
    found = readings(rounds, kilobytes, answers=answers)
    slope, apart = line(found)
    return {
        "rounds": rounds,
        "model KB": kilobytes,
        "after round 10, MB": found[0][1],
        "at the end, MB": found[-1][1],
        "slope KB/round": slope,
        "off the line, MB": apart,
        "ms/round": (time.perf_counter() - begin) * 1e3 / rounds,
        "curve": found,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--kilobytes", type=int, default=1000, help="size of the model")
    parser.add_argument("--no-answers", action="store_true", help="do not keep accepted answers on the disk")
    parser.add_argument("--serve", type=Path, metavar="STATE", help="be the server")
    parser.add_argument("--agent", metavar="ADDRESS", help="be an agent")
    parser.add_argument("--name")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(ServerSettings(port=0, state=options.serve), on_ready=lambda address: print(address, flush=True))
    elif options.agent:
        run_client(options.agent, name=options.name, token=local_token.find(options.agent), give_up_s=10)
    else:
        row = measure(options.rounds, options.kilobytes, answers=not options.no_answers)
        found = row.pop("curve")
        print(micro_table("The server's resident memory over a long run", [row]))
        print(f"  MB after round …  {curve(found)}")
        if options.json is not None:
            options.json.write_text(json.dumps(row | {"curve": found}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
