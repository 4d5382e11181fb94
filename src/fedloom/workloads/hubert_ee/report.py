"""Word error rates of a run's exits. Imported when a report is made, never by a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.markup import table, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution, PlainTable
from fedloom.reporting.quantities import NOTHING
from fedloom.reporting.run_folder import RunFolder

_HEAD = ("exit", "word error rate if all leave here", "utterances that leave here")
_EXIT = "wer_exit_"


def build_report(run: RunFolder) -> Contribution:
    """Return the table of exits, the curves, and the numbers that a study compares; none of a pretraining."""
    evaluated = [record for record in run.rounds if record.evaluation and "wer" in record.evaluation]
    if not evaluated:
        return Contribution()
    last: Mapping[str, float] = evaluated[-1].evaluation or {}
    layers = sorted(int(name.removeprefix(_EXIT)) for name in last if name.startswith(_EXIT))
    rows = [(f"layer {n}", _percent(last[f"{_EXIT}{n}"]), _percent(last.get(f"left_at_{n}", math.nan))) for n in layers]
    rows.append(("early exits", _percent(last["wer"]), f"mean layer {last['mean_exit_layer']:.2f}"))
    chart = line_chart(
        "Word error rate on held-out utterances",
        [
            Series(
                label=f"layer {n}",
                x=[float(record.round) for record in evaluated],
                y=[(record.evaluation or {}).get(f"{_EXIT}{n}", math.nan) for record in evaluated],
                color=place,
            )
            for place, n in enumerate(layers)
        ],
        x_label="round",
        x_whole=True,
    )
    words = "Errors are substitutions, insertions and deletions of words, over the words of the whole set."
    shown = table(_HEAD, rows, caption="Exits after the last round")
    return Contribution(
        sections=(section("Word errors by exit", tag("p", words), shown, tag("div", chart, class_="charts")),),
        numbers={name: value for name, value in last.items() if "." not in name},
        headlines={"word error rate": _percent(last["wer"]), "mean exit layer": f"{last['mean_exit_layer']:.2f}"},
        tables=(PlainTable(head=_HEAD, rows=tuple(rows)),),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else NOTHING
