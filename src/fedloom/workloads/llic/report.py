"""Numbers and curves of a run of learned compression. Imported when a report is made, never by a run."""

from __future__ import annotations

import math

from fedloom.core.run_files import read_choices
from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.markup import Markup, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution
from fedloom.reporting.run_folder import RunFolder

_OWN = ("own_bits_per_pixel", "own_psnr", "own_loss")


def build_report(run: RunFolder) -> Contribution:
    """Return the curves of rate and quality, and the last evaluation's numbers for studies."""
    evaluated = [record for record in run.rounds if record.evaluation and "psnr" in record.evaluation]
    numbers = dict(evaluated[-1].evaluation or {}) if evaluated else {}
    charts = list[Markup]()
    trained = [record for record in run.rounds if "rate" in record.metrics]
    for key, title in (("loss", "Training loss"), ("rate", "Training rate, bits per pixel")):
        if trained:
            rounds = [float(record.round) for record in trained]
            values = [record.metrics.get(key, math.nan) for record in trained]
            charts.append(line_chart(title, [Series(label="crops", x=rounds, y=values)], x_label="round", x_whole=True))
    for key, title in (("bits_per_pixel", "Bits per pixel of held-out photographs"), ("psnr", "PSNR, dB")):
        if evaluated and key in numbers:
            rounds = [float(record.round) for record in evaluated]
            values = [(record.evaluation or {}).get(key, math.nan) for record in evaluated]
            charts.append(
                line_chart(title, [Series(label="held out", x=rounds, y=values)], x_label="round", x_whole=True)
            )
    own = _own(run)
    if own:
        line = Series(label="clients", x=[place for place, _ in own], y=[each["own_loss"] for _, each in own])
        charts.append(line_chart("Loss of crops that clients hold back", [line], x_label="round", x_whole=True))
        numbers |= own[-1][1]
    if not charts:
        return Contribution()
    return Contribution(
        sections=(section("Training a codec", tag("div", charts, class_="charts")),),
        numbers={name: value for name, value in numbers.items() if "." not in name},
    )


def _own(run: RunFolder) -> list[tuple[float, dict[str, float]]]:
    """Return the means over clients of what they measure on crops of their own, each client counting once."""
    found = list[tuple[float, dict[str, float]]]()
    for choice in read_choices(run.path):
        each = [line.metrics for line in choice.trained if "own_loss" in line.metrics]
        if each:
            means = {name: sum(one[name][0] / one[name][1] for one in each) / len(each) for name in _OWN}
            found.append((float(choice.round), means))
    return found
