"""The modes of a run side by side: accuracy, memory, time. Imported when a report is made, never by a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedloom.core.history import Choice
from fedloom.core.run_files import read_choices
from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.markup import Markup, table, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution, PlainTable
from fedloom.reporting.quantities import NOTHING, bytes_text, seconds_text
from fedloom.reporting.run_folder import RunFolder

_BYTES = ("activation_bytes", "parameter_bytes", "optimizer_bytes")
_HEAD = ("mode", "accuracy", "activations", "weights", "optimiser", "time per epoch")


@dataclass(frozen=True, slots=True)
class Line:
    """One mode at the end of a run."""

    mode: str
    accuracy: float
    bytes: tuple[float, float, float]
    """Activations, weights, optimiser."""
    seconds: float
    """Of the gradients of all clients' examples once; NaN if unknown."""

    def cells(self) -> tuple[str, ...]:
        """Return the line as text."""
        accuracy = f"{100 * self.accuracy:.2f} %" if math.isfinite(self.accuracy) else NOTHING
        return self.mode, accuracy, *map(bytes_text, self.bytes), seconds_text(self.seconds)


def build_report(run: RunFolder) -> Contribution:
    """Return the table of modes, the curves, the clients' memory, and the numbers that a study compares."""
    evaluated = [record for record in run.rounds if record.evaluation]
    if not evaluated:
        return Contribution()
    modes = list(run.experiment["workload"].get("modes", ["dgl_mlaan"]))
    choices = read_choices(run.path)
    lines = [_line(mode, len(modes), evaluated[-1].evaluation or {}, choices, run) for mode in modes]
    chart = line_chart(
        "Accuracy on held-out images",
        [
            Series(
                label=mode,
                x=[float(record.round) for record in evaluated],
                y=[_value(record.evaluation or {}, "accuracy", mode, len(modes)) for record in evaluated],
                color=place,
            )
            for place, mode in enumerate(modes)
        ],
        x_label="round",
        x_whole=True,
    )
    words = (
        "Activations: peak bytes that one step with a full minibatch saves for the backward pass, each storage once. "
        "Weights: what is trained, auxiliary networks included, and averages. Optimiser: gradients and momentum. "
        "Time: gradients only, on the clients' processors."
    )
    shown = table(_HEAD, [line.cells() for line in lines], caption="The modes after the last round")
    parts = [section("Modes", tag("p", words), shown, tag("div", chart, class_="charts"))]
    peaks = _peaks(choices)
    if len(set(peaks.values())) > 1:
        parts.append(_clients(peaks))
    return Contribution(
        sections=tuple(parts),
        numbers={**_numbers(lines), **_of_clients(peaks)},
        headlines={f"accuracy, {line.mode}": line.cells()[1] for line in lines} if len(lines) > 1 else {},
        tables=(PlainTable(head=_HEAD, rows=tuple(line.cells() for line in lines)),),
    )


def _line(mode: str, modes: int, evaluation: Mapping[str, float], choices: list[Choice], run: RunFolder) -> Line:
    found = tuple(_value(evaluation, name, mode, modes) for name in _BYTES)
    return Line(
        mode,
        _value(evaluation, "accuracy", mode, modes),
        (found[0], found[1], found[2]),
        _seconds(mode, choices) / max(int(run.experiment["workload"].get("training", {}).get("epochs", 1)), 1),
    )


def _value(evaluation: Mapping[str, float], name: str, mode: str, modes: int) -> float:
    return evaluation.get(f"{name}_{mode}" if modes > 1 else name, math.nan)


def _seconds(mode: str, choices: list[Choice]) -> float:
    """Return the median over rounds of the clients' seconds for a mode; NaN without a round."""
    each = [
        sum(line.info["seconds"][mode] for line in choice.trained if mode in line.info.get("seconds", {}))
        for choice in choices
    ]
    return float(np.median(each)) if each else math.nan


def _peaks(choices: list[Choice]) -> dict[int, float]:
    """Return each client's peak of activation bytes, over all modes and rounds."""
    peaks: dict[int, float] = {}
    for choice in choices:
        for line in choice.trained:
            total, weight = line.metrics.get("activation_bytes", (0.0, 0.0))
            if weight:
                peaks[line.client] = max(peaks.get(line.client, 0.0), total / weight)
    return peaks


def _clients(peaks: Mapping[int, float]) -> Markup:
    rows = [(f"client {client}", bytes_text(peaks[client])) for client in sorted(peaks)]
    words = "Clients that train a range of modules need memory for that range only."
    shown = table(("client", "peak of activations"), rows, caption="Peak of a step, the largest of the modes'")
    return section("Memory of clients", tag("p", words), shown)


def _of_clients(peaks: Mapping[int, float]) -> dict[str, float]:
    if not peaks:
        return {}
    return {"least_client_bytes": min(peaks.values()), "most_client_bytes": max(peaks.values())}


def _numbers(lines: list[Line]) -> dict[str, float]:
    """Return each mode's numbers, and the last one's without a name."""
    numbers: dict[str, float] = {}
    for line in lines:
        found = {"accuracy": line.accuracy, "epoch_seconds": line.seconds, **dict(zip(_BYTES, line.bytes, strict=True))}
        numbers |= found | {f"{name}_{line.mode}": value for name, value in found.items()}
    return numbers
