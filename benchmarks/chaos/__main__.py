"""`python -m benchmarks.chaos`: a hundred runs with faults drawn from a seed, and what came of each."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.fleet import Zygote
from benchmarks.chaos.network import network
from benchmarks.chaos.play import Outcome, play, undisturbed
from benchmarks.chaos.schedule import HOSTILE, NODES, draw

_COLUMNS = "  #  mode    faults (@ rounds done)".ljust(100) + "what happened".ljust(56) + "s     same bits"


def what_happened(outcome: Outcome) -> str:
    """A row's middle, short."""
    reported = [outcome.status if outcome.status != "done" else f"{len(outcome.rounds)} rounds"]
    counted = {"restarts": outcome.restarts, "moved": outcome.reassigned, "duplicate": outcome.duplicates}
    counted |= {"stale": outcome.stale, "missing": outcome.missing, "wrong": len(outcome.wrong_rounds)}
    counted |= {"ended alone": len(outcome.ended_alone), "LET IN": outcome.let_in}
    return ", ".join(reported + [f"{count} {name}" for name, count in counted.items() if count])


def row(outcome: Outcome) -> str:
    """One line of the table."""
    schedule = outcome.schedule
    left = f"{schedule.index:3}  {'members' if schedule.members else 'token':8}{schedule}"
    same = "yes" if outcome.same_bits else "NO"
    error = f"\n       {outcome.error.splitlines()[0][:160]}" if outcome.error else ""
    return f"{left:99} {what_happened(outcome):55} {outcome.seconds:4.1f}  {same}{error}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """The last lines: what was kept, and what was not."""
    recoveries = sorted(outcome.recovery_s for outcome in outcomes if outcome.recovery_s is not None)
    sound = sum(outcome.sound for outcome in outcomes)
    lines = [
        f"{sound} of {len(outcomes)} schedules kept every promise; "
        f"{sum(outcome.same_bits for outcome in outcomes)} ended with the bits of the undisturbed run",
        f"{sum(len(outcome.rounds) for outcome in outcomes)} rounds on record, "
        f"{sum(len(outcome.wrong_rounds) for outcome in outcomes)} of them wrong; "
        f"{sum(outcome.missing for outcome in outcomes)} answers lost; "
        f"{sum(outcome.refused for outcome in outcomes)} strange calls refused, "
        f"{sum(outcome.let_in for outcome in outcomes)} let in",
    ]
    if recoveries:
        median = recoveries[len(recoveries) // 2]
        lines.append(f"from a server's start to its next round: median {median:.1f} s, longest {recoveries[-1]:.1f} s")
    lines.append(f"largest server: {max(outcome.server_mb for outcome in outcomes):.0f} MB resident")
    return "\n".join(lines)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything about a schedule and what came of it."""
    return dataclasses.asdict(outcome) | {"sound": outcome.sound, "faults": str(outcome.schedule)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first schedule")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    parser.add_argument("--keep", type=Path, help="keep the folders of schedules that went wrong here")
    options = parser.parse_args(arguments)
    want, outcomes = undisturbed(options.seed), list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="fedloom-chaos-") as name, contextlib.ExitStack() as stack:
        zygote = stack.enter_context(contextlib.closing(Zygote()))
        links = stack.enter_context(network((*NODES, HOSTILE)))
        kind = (
            "one network namespace for each node" if links else "no rights to make network namespaces: cuts are stops"
        )
        print(f"seed {options.seed}; {kind}\n{_COLUMNS}", flush=True)
        for index in range(options.first, options.first + options.schedules):
            folder = Path(name) / f"{index:03}"
            outcome = play(draw(options.seed, index), folder, zygote, links, want)
            outcomes.append(outcome)
            print(row(outcome), flush=True)
            if options.keep is not None and not outcome.sound:
                shutil.copytree(folder, options.keep / folder.name, dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(summary(outcomes))
    if options.json is not None:
        options.json.write_text(
            json.dumps([as_json(outcome) for outcome in outcomes], indent=1) + "\n", encoding="utf-8"
        )
    return 0 if all(outcome.sound for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
