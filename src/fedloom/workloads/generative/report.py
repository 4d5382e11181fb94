"""The table of members, their curves and pictures of samples. Imported when a report is made, never by a run."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.history import Choice, RoundRecord
from fedloom.core.records import Array, Info
from fedloom.core.run_files import read_choices
from fedloom.reporting.axes import Range
from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.grids import grid_picture
from fedloom.reporting.markup import Markup, table, tag
from fedloom.reporting.page import collapsible, section
from fedloom.reporting.plugins import Contribution, PlainTable
from fedloom.reporting.quantities import NOTHING, count_text, seconds_text
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.generative.families import KINDS

_HEAD = (
    "member",
    "family",
    "bits/dim",
    "density",
    "Fréchet",
    "kernel",
    "inception",
    "classes",
    "nearer",
    "samples/s",
    "weights",
    "training",
)
_COLUMNS = 16
"""Samples side by side in a picture."""
_PAST = 4
"""Earlier pictures shown, at most."""


@dataclass(frozen=True, slots=True)
class Line:
    """One member at the end of a run; NaN for what is not known."""

    name: str
    bits: float
    seconds: float
    """Of all clients' training."""
    measured: Info
    """The monitor's; empty without one."""
    classes: int

    def value(self, key: str) -> float:
        """Return one of the monitor's numbers; NaN if it is not known."""
        value = self.measured.get(key)
        return math.nan if value is None else float(value)

    def cells(self) -> tuple[str, ...]:
        """Return the line as text."""
        kind, nearer = KINDS[self.name], self.value("nearer")
        return (
            kind.title,
            kind.family,
            _text(self.bits, 3) if kind.density != "none" else "n/a (no likelihood)",
            kind.density,
            _text(self.value("frechet"), 3),
            _text(self.value("kernel"), 4),
            _text(self.value("inception"), 2),
            f"{self.measured['covered']}/{self.classes}" if self.measured else NOTHING,
            f"{100 * nearer:.0f} %" if math.isfinite(nearer) else NOTHING,
            _text(self.value("samples_per_second"), 0),
            count_text(int(self.measured["parameters"])) if self.measured else NOTHING,
            seconds_text(self.seconds) if self.seconds else NOTHING,
        )


def build_report(run: RunFolder) -> Contribution:
    """Return the table, curves, pictures of samples, and the numbers that a study compares."""
    evaluated = [record for record in run.rounds if record.evaluation]
    if not evaluated:
        return Contribution()
    watched = [record for record in evaluated if record.monitor and "members" in record.monitor]
    last: Info = (watched[-1].monitor if watched else None) or {}
    seconds = _seconds(read_choices(run.path))
    lines = [
        Line(
            name,
            (evaluated[-1].evaluation or {}).get(f"bits_per_dim_{name}", math.nan),
            seconds.get(name, math.nan),
            last.get("members", {}).get(name, {}),
            int(last.get("classes", 0)),
        )
        for name in run.experiment["workload"]["members"]
        if name in KINDS
    ]
    cells = [line.cells() for line in lines]
    parts = [
        section("Generative models", tag("p", _words(last, run)), table(_HEAD, cells, caption="After the last round")),
        section("Learning", tag("div", _curves(lines, evaluated), class_="charts")),
    ]
    pictures = [collapsible(f"Round {record.round}", _pictures(record)) for record in _spread(watched[:-1])]
    if watched and _pictures(watched[-1]):
        parts.append(section("Samples", _pictures(watched[-1]), pictures))
    return Contribution(
        sections=tuple(parts),
        numbers=_numbers(lines, last),
        headlines={f"bits/dim, {line.name}": _text(line.bits, 3) for line in lines if math.isfinite(line.bits)},
        tables=(PlainTable(head=_HEAD, rows=tuple(cells)),),
    )


def _words(last: Info, run: RunFolder) -> str:
    words = (
        "Bits per dimension: -log2 p(x) / D on held-out images; for flows and the Gaussian of dequantised images, "
        "which bounds the code from above; estimates solve an integral in steps."
    )
    if not last:
        return words + " Samples were not measured: add the monitor 'generative'."
    floor = last.get("floor")
    shown = "" if floor is None else f" Held-out images themselves are at {floor:.3f}."
    return (
        f"{words} Fréchet and kernel distance: from the clients' training images, in features of the classifier that "
        f"was trained beside the models, so they compare this run's models alone.{shown} Classes: those with at least "
        "a fifth of an even share of the samples. Nearer: how much nearer to a training image samples are than "
        "held-out images; above 20 % they may be memorised. Training: seconds of the clients."
    )


def _curves(lines: Sequence[Line], evaluated: Sequence[RoundRecord]) -> list[Markup]:
    found = []
    for key, title in (("bits_per_dim", "Bits per dimension"), ("frechet", "Fréchet distance")):
        series = []
        for color, line in enumerate(lines):
            points = [
                (float(record.round), (record.evaluation or {}).get(f"{key}_{line.name}", math.nan))
                for record in evaluated
            ]
            if any(math.isfinite(value) for _, value in points):
                x, y = zip(*points, strict=True)
                series.append(Series(label=line.name, x=list(x), y=list(y), color=color))
        if series:
            found.append(line_chart(title, series, x_label="round", x_whole=True))
    return found


def _pictures(record: RoundRecord) -> list[Markup]:
    info = record.monitor or {}
    height, width, levels = info["form"]
    found = []
    for name, line in info["members"].items():
        raw = np.frombuffer(base64.b64decode(line["pictures"]), np.uint8)
        images = raw.reshape(-1, height, width) / (levels - 1)
        if len(images):
            found.append(_mosaic(f"{KINDS[name].title}, round {record.round}", images))
    return found


def _mosaic(title: str, images: Array) -> Markup:
    """Draw images (n, h, w) from 0 to 1 in rows."""
    count, height, width = images.shape
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width))
    sheet[:count] = images
    shade = sheet.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return grid_picture(
        title,
        shade,
        spoken=f"{count} samples, darker for more",
        x_label="sample",
        x=Range(low=0.0, high=float(columns)),
        y=Range(low=0.0, high=float(rows)),
        y_names=[],
    )


def _spread(records: Sequence[RoundRecord]) -> Sequence[RoundRecord]:
    """Return a few of the records, evenly spaced."""
    return [
        records[place] for place in sorted({*np.linspace(0, len(records) - 1, min(_PAST, len(records)), dtype=int)})
    ]


def _seconds(choices: Sequence[Choice]) -> Mapping[str, float]:
    """Return the clients' seconds of training by member, over all rounds."""
    found: dict[str, float] = {}
    for choice in choices:
        for line in choice.trained:
            for name, value in line.info.get("seconds", {}).items():
                found[name] = found.get(name, 0.0) + float(value)
    return found


def _numbers(lines: Sequence[Line], last: Info) -> dict[str, float]:
    """Return each member's numbers; the first of a family has the family's name, too, and the last one none."""
    numbers: dict[str, float] = {"frechet_floor": math.nan if last.get("floor") is None else float(last["floor"])}
    found: dict[str, float] = {}
    for line in lines:
        found = {"bits_per_dim": line.bits, "training_seconds": line.seconds}
        for key in ("frechet", "kernel", "inception", "covered", "nearer", "samples_per_second", "parameters"):
            found[key] = line.value(key)
        numbers |= {f"{key}_{line.name}": value for key, value in found.items()}
        for key, value in found.items():
            numbers.setdefault(f"{key}_{KINDS[line.name].family}", value)
    return numbers | found


def _text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING
