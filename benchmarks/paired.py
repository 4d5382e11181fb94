"""`python -m benchmarks.paired --base COMMIT`: is fedloom here slower than it was in an earlier commit?

No-op rounds and the training rows run alternately there and here, so that both meet the same neighbours on the machine.
For each pair the ratio here / there is taken; the median ratio and an upper bound of it are printed, the bound an order
statistic of the ratios: it holds for any distribution, with the confidence printed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.same_bits.__main__ import DEFAULT_BASE, ROOT
from benchmarks.same_bits.errors import WrongInput
from benchmarks.same_bits.repository import Repository
from benchmarks.work import WORKS

CONFIDENCE = 0.95
_ROUNDS = {"noop": 120, "A": 10, "B": 6, "C": 6}
"""Rounds of one run of a row."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A one-sided upper bound of a median."""

    value: float
    """Dimensionless; infinite where there are too few pairs."""
    confidence: float


def upper_bound(ratios: Sequence[float], confidence: float = CONFIDENCE) -> Bound:
    """Return the smallest order statistic that is an upper bound of the median with at least this confidence.

    The k-th smallest of n ratios lies below the median only if at least k of n fair coins show heads, so its confidence
    is P(Binomial(n, 1/2) <= k - 1).
    """
    count, below = len(ratios), 0.0
    for k, ratio in enumerate(sorted(ratios), 1):
        below += math.comb(count, k - 1) / 2**count
        if below >= confidence:
            return Bound(ratio, below)
    return Bound(math.inf, 1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure pairs, print a table; exit with 1 where a bound passes the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paired", description=__doc__)
    parser.add_argument("--base", default=DEFAULT_BASE, help="commit to compare with (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", choices=("noop", *WORKS), default=["noop", "A", "B", "C"])
    parser.add_argument("--pairs", type=int, default=10, help="alternating pairs of each row (default: 10)")
    parser.add_argument("--limit", type=float, default=1.03, help="largest upper bound that passes (default: 1.03)")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    options = parser.parse_args(arguments)
    repository = Repository(ROOT)
    try:
        there = repository.checkout(repository.resolve(options.base), repository.cache_folder())
    except WrongInput as exc:
        print(exc, file=sys.stderr)
        return 2
    measured = {
        row: pairs(functools.partial(measure, row=row), (there, ROOT), options.pairs, row) for row in options.rows
    }
    print(table(measured, options.limit))
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    bounds = [upper_bound(_ratios(each, name)).value for each in measured.values() for name in each[0][0]]
    return int(any(bound > options.limit for bound in bounds))


Numbers = Mapping[str, float]
"""What one run measured, by what it is."""


def pairs(
    measure_in: Callable[[Path], Numbers], trees: tuple[Path, Path], count: int, row: str
) -> list[tuple[Numbers, Numbers]]:
    """Run alternately in both trees; the order within a pair changes from pair to pair."""
    found = []
    for index in range(count):
        print(f"{row}: pair {index + 1} of {count} …", file=sys.stderr, flush=True)
        if index % 2:
            later = measure_in(trees[1])
            found.append((measure_in(trees[0]), later))
        else:
            found.append((measure_in(trees[0]), measure_in(trees[1])))
    return found


def measure(tree: Path, row: str) -> Numbers:
    """Run one row in a tree; milliseconds of wall clock and of CPU per round."""
    rounds = str(_ROUNDS[row])
    command = ["benchmarks.orchestration", "--runtime", "process", "--rounds", rounds]
    if row != "noop":
        command = ["benchmarks.ours", row, "--rounds", rounds]
    with tempfile.TemporaryDirectory(prefix="fedloom-paired-") as folder:
        environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}", "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [sys.executable, "-m", *command, "--out", folder],
            cwd=tree,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if ended.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed in {tree}:\n{ended.stderr[-2000:]}")
        result: dict[str, float] = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    if row == "noop":
        return {"wall": result["wall ms/round"], "CPU": result["driver CPU ms/round"]}
    return {"wall": result["wall_s"] * 1e3, "CPU": result["cpu_s"] * 1e3}


def table(measured: Mapping[str, Sequence[tuple[Numbers, Numbers]]], limit: float) -> str:
    """Return the ratios as text, a line for each row and number."""
    lines = [f"{'row':6}{'':6}{'there':>12}{'here':>12}{'ratio':>9}{'bound':>9}  (upper, one-sided; limit {limit:g})"]
    for row, each in measured.items():
        for name in each[0][0]:
            bound = upper_bound(_ratios(each, name))
            there, here = (statistics.median(pair[side][name] for pair in each) for side in (0, 1))
            lines.append(
                f"{row:6}{name:6}{there:>9.2f} ms{here:>9.2f} ms{statistics.median(_ratios(each, name)):>9.3f}"
                f"{bound.value:>9.3f}  {len(each)} pairs, confidence {bound.confidence:.1%}"
            )
    return "\n".join(lines)


def _ratios(pairs_of_row: Sequence[tuple[Numbers, Numbers]], name: str) -> list[float]:
    return [here[name] / there[name] for there, here in pairs_of_row]


if __name__ == "__main__":
    sys.exit(main())
