"""What was measured as a table and as ratios; medians over repeats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.work import WORKS

NAMES: Mapping[str, str] = {
    "bare1": "bare loop, 1 process",
    "bare2": "bare loop, 2 processes",
    "process": "fedloom, 2 processes",
    "process-whole": "  with one group for each process",
    "process-saving": "  with a checkpoint each round",
    "ray": "fedloom, Ray, 2 actors",
    "flower": "Flower's engine, 2 actors",
}
COLUMNS: Mapping[str, tuple[str, str]] = {
    "wall_s": ("wall s/round", "{:.4f}"),
    "cpu_s": ("CPU s/round", "{:.4f}"),
    "pss_mb": ("peak PSS MB", "{:.0f}"),
    "first_round_s": ("1st round s", "{:.2f}"),
    "total_wall_s": ("all s", "{:.1f}"),
    "accuracy": ("accuracy", "{:.4f}"),
}
RATIOS = (
    ("fedloom / bare loop (2 processes each)", "process", "bare2"),
    ("fedloom, one group each / bare loop", "process-whole", "bare2"),
    ("fedloom on Ray / bare loop", "ray", "bare2"),
    ("Flower / fedloom (2 processes)", "flower", "process"),
    ("Flower / fedloom on Ray", "flower", "ray"),
)
Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Workload -> kind of runner -> one measurement per repeat."""


def medians(repeats: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Column -> median over repeats."""
    rows = list(repeats)
    return {column: statistics.median(row[column] for row in rows) for column in COLUMNS if column in rows[0]}


def summary(results: Results) -> dict[str, Any]:
    """Medians and ratios, as JSON."""
    found: dict[str, Any] = {}
    for work, kinds in results.items():
        rows = {kind: medians(repeats) for kind, repeats in kinds.items() if repeats}
        ratios = {
            title: {column: rows[above][column] / rows[below][column] for column in ("wall_s", "cpu_s", "pss_mb")}
            for title, above, below in RATIOS
            if above in rows and below in rows
        }
        found[work] = {"medians": rows, "ratios": ratios}
    return found


def training_table(results: Results, distances: Mapping[str, Mapping[str, float]]) -> str:
    """The results of the training benchmarks, as text."""
    lines: list[str] = []
    for work, found in summary(results).items():
        lines += ["", f"{work}: {WORKS[work].title}"]
        heads = [head for head, _ in COLUMNS.values()]
        lines.append(f"  {'':34}" + "".join(f"{head:>14}" for head in heads) + f"{'repeats':>9}")
        for kind, row in found["medians"].items():
            cells = [form.format(row[column]) if column in row else "" for column, (_, form) in COLUMNS.items()]
            count = len(results[work][kind])
            lines.append(f"  {NAMES[kind]:34}" + "".join(f"{cell:>14}" for cell in cells) + f"{count:>9}")
        for title, ratio in found["ratios"].items():
            lines.append(
                f"  {title:42} wall {ratio['wall_s']:6.2f}x   CPU {ratio['cpu_s']:6.2f}x   "
                f"memory {ratio['pss_mb']:5.2f}x"
            )
        for kind, distance in distances.get(work, {}).items():  # float sums in another order
            share = f"{distance:.1e} of the way training moved them"
            lines.append(f"  same work: {NAMES[kind].strip()} ends with the bare loop's weights, but for {share}")
    return "\n".join(lines)


def micro_table(title: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of one shape as text."""
    rows = list(rows)
    if not rows:
        return ""
    heads = list(rows[0])
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(len(head), *(len(row[column]) for row in cells)) for column, head in enumerate(heads)]
    table = [heads, *cells]
    body = "\n".join(
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table
    )
    return f"\n{title}\n{body}"
