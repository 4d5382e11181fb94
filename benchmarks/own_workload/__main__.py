"""`python -m benchmarks.own_workload`: rounds of `TorchWorkload` and of the same task written by hand, in turn.

Both do the same arithmetic; the table says how far apart the final weights are. For each pair of runs the ratio base
class / by hand of the rounds' median CPU time is taken; the median ratio and an upper bound of it are printed, as by
`benchmarks.paired`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.own_workload.task import BATCH, CLIENTS, RATE
from benchmarks.paired import upper_bound
from fedloom import api
from fedloom.core.config import Experiment
from fedloom.result import RunResult

LIMIT = 1.03
"""Largest median ratio."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure pairs, print a table; exit with 1 where a median passes the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_workload", description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of runs of each network (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of one run (default: %(default)s)")
    given = parser.parse_args(arguments)
    print(f"{'network':8} {'by hand, ms/round':>18} {'base class':>11} {'ratio':>7} {'at most':>8} {'differ by':>14}")
    worst = 0.0
    for kind in ("mlp", "cnn"):
        ratios, hand, base, apart = list[float](), list[float](), list[float](), 0.0
        run(kind, "by_hand", 2), run(kind, "by_base", 2)  # imports and caches
        for pair in range(given.pairs):
            order = ("by_hand", "by_base") if pair % 2 else ("by_base", "by_hand")
            results = {name: run(kind, name, given.rounds) for name in order}
            one, two = (results[name] for name in ("by_hand", "by_base"))
            hand.append(one[1])
            base.append(two[1])
            ratios.append(two[1] / one[1])
            apart = max(float(np.abs(one[0].arrays[name] - two[0].arrays[name]).max()) for name in one[0].arrays)
        bound = upper_bound(ratios)
        middle = statistics.median(ratios)
        worst = max(worst, middle)
        print(
            f"{kind:8} {1000 * statistics.median(hand):18.2f} {1000 * statistics.median(base):11.2f} {middle:7.3f} "
            f"{bound.value:8.3f} {apart:14.1e}",
            flush=True,
        )
    print(f"the median ratio is {'within' if worst <= LIMIT else 'above'} {LIMIT}")
    return 0 if worst <= LIMIT else 1


def run(kind: str, workload: str, rounds: int) -> tuple[RunResult, float]:
    """Return a run's result, and the median of its rounds' CPU seconds, the first left out."""
    base = {"partition": {"scheme": "iid"}, "training": {"learning_rate": RATE, "batch_size": BATCH}}
    experiment = Experiment.parse(
        {
            "rounds": rounds,
            "clients": CLIENTS,
            "strategy": "fedavg",
            "workload": {
                "name": f"benchmarks.own_workload.{workload}",
                "network": kind,
                **(base if workload == "by_base" else {}),
            },
            "evaluation": {"every": 0},
            "runtime": {"name": "inline"},
        }
    )
    clock = _RoundClock()
    result = api.run(experiment, sinks=[clock], keep=False)
    return result, statistics.median(clock.seconds[1:])


class _RoundClock:
    """Takes this process's CPU seconds of every round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._before = time.process_time()

    def write(self, event: object) -> None:
        if type(event).__name__ == "RoundFinished":
            now = time.process_time()
            self.seconds.append(now - self._before)
            self._before = now

    def close(self) -> None:
        """Do nothing."""


if __name__ == "__main__":
    raise SystemExit(main())
