"""Errors against depth and time, and transcripts, of the last evaluated round."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedloom.core.records import Info
from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.markup import Markup, table, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution
from fedloom.reporting.quantities import NOTHING
from fedloom.reporting.run_folder import RunFolder


def build_report(run: RunFolder) -> Contribution:
    """Return the curves, the transcripts, and the numbers a study compares; none if the monitor was never used."""
    infos = [record.monitor for record in run.rounds if record.monitor]
    if not infos:
        return Contribution()
    info = infos[-1]
    charts = tag("div", _charts(info), class_="charts")
    parts: list[Markup] = [tag("p", _words(info)), charts, _exits(info), _criteria(info)]
    if info.get("examples"):
        parts.append(_transcripts(info))
    return Contribution(sections=(section("Early exits", *parts),), numbers=numbers(info))


def numbers(info: Info) -> dict[str, float]:
    """Return the numbers of a trade-off; NaN where one was not measured."""
    rates, noise = info["wer_exits"], info.get("noise", {})
    found = {
        "wer_first_exit": rates[0],
        "wer_last_branch": rates[-2],
        "wer_final_head": rates[-1],
        "wer_first_over_last": rates[0] - rates[-2],
        "wer_last_over_final": rates[-2] - rates[-1],
        "random_exits_wer": info["random"]["wer"],
        "random_exits_gain": info["random"]["wer"] - info["wer"],
        "random_exits_p": info["random"]["p"],
        "oracle_wer": info["oracle"]["wer"],
        "first_exit_auroc": _number(info["auroc"][0]),
        "last_branch_auroc": _number(info["auroc"][-1]),
        "noise_spearman": _number(noise.get("spearman")),
        "noise_p": _number(noise.get("p")),
        "saved_share": _number(info.get("saved_share")),
        "oracle_gap": info["wer"] - info["oracle"]["wer"],
        "wer_increase": info["wer"] / rates[-1] - 1.0 if rates[-1] else 0.0,
    }
    for name, line in info["calibrated"].items():
        found[f"wer_{name}"] = _number(line["wer"])
        found[f"mean_exit_layer_{name}"] = _number(line["mean_exit_layer"])
        found[f"saved_share_{name}"] = _number(line["saved_share"])
    for place, share in enumerate(info["left"]):
        found[f"left_share_{place + 1}"] = share
    return found


def _words(info: Info) -> str:
    shares = ", ".join(
        f"{100 * share:.0f} % at layer {layer}" for layer, share in zip(info["layers"], info["left"], strict=True)
    )
    random, oracle = info["random"], info["oracle"]
    text = (
        f"{info['utterances']} held-out utterances, {info['words']:.0f} words. Criterion {info['criterion']!r}, "
        f"threshold {info['threshold']:.4g}: {shares} leave. Word error rate {100 * info['wer']:.1f} %; of the same "
        f"exits given to utterances at random, {100 * random['wer']:.1f} % (p = {random['p']:.4f}); of leaving at the "
        f"first exit with the fewest errors, {100 * oracle['wer']:.1f} %, mean layer {oracle['mean_exit_layer']:.2f}."
    )
    if "saved_share" in info:
        text += f" CPU time at batch 1: {100 * info['saved_share']:.1f} % less than the model without branches."
    return text


def _charts(info: Info) -> list[Markup]:
    charts = [_curve(info, "Word error rate against mean exit layer", 1, 1.0, "mean exit layer")]
    if "seconds" in info:
        charts.append(_curve(info, "Word error rate against CPU time", 3, 1000.0, "CPU time per utterance, ms"))
    return charts


def _curve(info: Info, title: str, column: int, unit: float, label: str) -> Markup:
    lines = []
    for color, (name, points) in enumerate(info["curves"].items()):
        found = sorted((_number(point[column]) * unit, point[2]) for point in points if point[column] is not None)
        lines.append(Series(label=name, x=[x for x, _ in found], y=[y for _, y in found], color=color))
    return line_chart(title, lines, x_label=label)


def _exits(info: Info) -> Markup:
    rows = []
    seconds: Sequence[float | None] = info.get("seconds_exits", [None] * len(info["layers"]))
    for place, layer in enumerate(info["layers"]):
        area = info["auroc"][place] if place < len(info["auroc"]) else None
        rows.append(
            (
                f"layer {layer}",
                f"{100 * info['wer_exits'][place]:.1f} %",
                f"{100 * info['left'][place]:.1f} %",
                NOTHING if seconds[place] is None else f"{1000 * _number(seconds[place]):.2f} ms",
                NOTHING if area is None else f"{area:.3f}",
            )
        )
    head = ("exit", "word error rate if all leave", "leave here", "CPU time", "AUROC of -H for the final transcript")
    return table(head, rows, caption="Exits")


def _criteria(info: Info) -> Markup:
    rows = []
    for name, line in info["calibrated"].items():
        saved = line["saved_share"]
        rows.append(
            (
                name,
                f"{_number(line['threshold']):.4g}",
                f"{_number(line['mean_exit_layer']):.2f}",
                f"{100 * _number(line['wer']):.1f} %",
                NOTHING if saved is None else f"{100 * saved:.1f} %",
            )
        )
    head = ("criterion", "threshold", "mean exit layer", "word error rate", "CPU time saved")
    return table(head, rows, caption="Criteria, each calibrated on the dev set")


def _transcripts(info: Info) -> Markup:
    rows = []
    for line in info["examples"]:
        for place, (layer, text) in enumerate(zip(info["layers"], line["texts"], strict=True)):
            entropy = f"{line['entropy'][place]:.4f}" if place < len(line["entropy"]) else NOTHING
            leaves = "left here" if layer == line["layer"] else ""
            rows.append(
                (line["reference"] if not place else "", f"layer {layer}", text or "(nothing)", leaves, entropy)
            )
    head = ("said", "exit", "transcript", "", "entropy")
    return table(head, rows, caption="Transcripts at each exit", text=4)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
