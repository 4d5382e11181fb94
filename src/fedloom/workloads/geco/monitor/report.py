"""The monitor's part of a run's report: mass accuracies, gaps, their course, and sentences with shaded words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedloom.core.records import Info
from fedloom.reporting.charts import Series, line_chart
from fedloom.reporting.markup import Markup, join, table, tag
from fedloom.reporting.page import collapsible, section
from fedloom.reporting.plugins import Contribution, PlainTable
from fedloom.reporting.quantities import NOTHING
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.geco.monitor.config import MODEL_FREE

TITLES = {
    "random": "random",
    "covariance": "covariance pattern",
    "saliency": "Saliency",
    "input_x_gradient": "InputXGradient",
    "integrated_gradients": "Integrated Gradients",
    "gradient_shap": "Gradient SHAP",
    "deep_lift": "DeepLift",
    "kernel_shap": "Kernel SHAP",
    "lime": "LIME",
    "occlusion": "Occlusion",
    "guided_backprop": "Guided Backprop",
    "deconvolution": "Deconvolution",
}
"""Names of the explainers for people."""
_PLAIN_GRADIENT = ("guided_backprop", "deconvolution")
Nets = Mapping[str, Mapping[str, Info]]


def build_report(run: RunFolder) -> Contribution:
    """Return the tables of mass accuracies, curves, shaded sentences, and numbers; none if nothing was explained."""
    reported = [(record.round, record.monitor) for record in run.rounds if record.monitor.get("nets")]
    if not reported:
        return Contribution()
    last = reported[-1][1]
    head, rows = _medians(last)
    parts = [
        section(
            "Explanations",
            tag("p", _words(last)),
            table(head, rows, caption="Median mass accuracy after the last evaluated round"),
            _gaps(last),
            _curves(reported) if len(reported) > 1 else None,
        ),
        *_sentences(last),
    ]
    return Contribution(
        sections=tuple(parts),
        numbers=numbers(last),
        headlines={
            f"mass accuracy, {net}": _shown(max(_known(each), default=math.nan)) for net, each in last["nets"].items()
        },
        tables=(PlainTable(head=head, rows=rows),),
    )


def numbers(info: Info) -> dict[str, float]:
    """Return what a study compares.

    `mass_accuracy_EXPLAINER`, `mass_accuracy_gap_EXPLAINER` and `mass_accuracy_relative_EXPLAINER` of the last network,
    and of each with its name behind; `mass_accuracy_gain_EXPLAINER_NET_over_OTHER` for each pair of networks, with the
    share `mass_accuracy_wins_…` of sentences where the first is greater, if their values are known.
    """
    nets: Nets = info["nets"]
    found: dict[str, float] = {"mass_accuracy_scored": float(info["scored"])}
    for net, explainers in nets.items():
        for name, entry in explainers.items():
            own = {
                f"mass_accuracy_{name}": _value(entry, "median"),
                f"mass_accuracy_gap_{name}": _value(entry, "gap"),
                f"mass_accuracy_relative_{name}": _value(entry, "relative"),
            }
            found |= own | ({f"{key}_{net}": value for key, value in own.items()} if len(nets) > 1 else {})
    for net in nets:
        for other in nets:
            if net != other:
                found |= _against(info, net, other)
    return found


def _against(info: Info, net: str, other: str) -> dict[str, float]:
    """Compare two networks, explainer by explainer."""
    nets: Nets = info["nets"]
    values: Mapping[str, Mapping[str, Sequence[float | None]]] = info.get("values", {})
    found = {}
    for name in nets[net]:
        pair = f"{name}_{net}_over_{other}"
        found[f"mass_accuracy_gain_{pair}"] = _value(nets[net][name], "median") - _value(nets[other][name], "median")
        if values:
            both = np.array([values[net][name], values[other][name]], np.float64)
            known = both[:, np.isfinite(both).all(axis=0)]
            if known.shape[1]:
                found[f"mass_accuracy_wins_{pair}"] = float((known[0] > known[1]).mean())
    return found


def _words(info: Info) -> str:
    total = int(sum(info["sentences"]))
    text = (
        "Mass accuracy is the share of an explanation's absolute weight on the words that differ between the versions "
        f"of a sentence ({', '.join(info['versions'])}): 1 is perfect, a random explanation has "
        f"{_shown(info.get('chance_median', math.nan))}. {info['scored']} of {total} sentences are scored"
    )
    text += ", those that every network classifies correctly. " if info["right"] else ". "
    if any(name in _PLAIN_GRADIENT for each in info["nets"].values() for name in each):
        text += (
            "Guided Backprop and Deconvolution differ from the plain gradient only at ReLUs; on networks without one, "
            "such as BERT's, both are the gradient."
        )
    return text


def _medians(info: Info) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return a table's head and rows: networks by explainers."""
    nets: Nets = info["nets"]
    names = list(next(iter(nets.values())))
    right: Mapping[str, Sequence[int]] = info["right"]
    head = ("network", *(["accuracy"] if right else []), *(TITLES.get(name, name) for name in names))
    rows = []
    for net, entries in nets.items():
        accuracy = [f"{100 * sum(right[net]) / max(sum(info['sentences']), 1):.1f} %"] if right else []
        rows.append((net, *accuracy, *(_shown(_value(entries[name], "median")) for name in names)))
    return head, tuple(rows)


def _gaps(info: Info) -> Markup | None:
    """Return the table of gaps between versions and of the gains over the first record."""
    nets: Nets = info["nets"]
    first, second = info["versions"][:2]
    rows = [
        (net, TITLES.get(name, name), _signed(_value(entry, "gap")), _signed(_value(entry, "relative")))
        for net, entries in nets.items()
        for name, entry in entries.items()
        if name not in MODEL_FREE
    ]
    if not rows:
        return None
    head = ("network", "explainer", f"{second} minus {first}", "log(median / median of the first record)")
    return collapsible(
        "Gaps between versions, and relative mass accuracy",
        table(head, rows, caption="From histograms of 20 bins", text=2),
    )


def _curves(reported: Sequence[tuple[int, Info]]) -> Markup:
    rounds = [float(number) for number, _ in reported]
    charts = []
    for net in reported[-1][1]["nets"]:
        series = [
            Series(
                label=TITLES.get(name, name),
                x=rounds,
                y=[_value(info["nets"].get(net, {}).get(name, {}), "median") for _, info in reported],
                color=place,
            )
            for place, name in enumerate(reported[-1][1]["nets"][net])
        ]
        charts.append(line_chart(f"Median mass accuracy, {net}", series, x_label="round", x_whole=True))
    return tag("div", charts, class_="charts")


def _sentences(info: Info) -> list[Markup]:
    """Return the sentences whose importances were sent, each explained by every network and explainer."""
    parts = []
    for example in info.get("examples", ()):
        rows = [
            (net, TITLES.get(name, name), _shaded(example["words"], example["mask"], shares))
            for net, each in example["shares"].items()
            for name, shares in each.items()
        ]
        title = " ".join(example["words"])
        parts.append(
            collapsible(title, table(("network", "explainer", "importance"), rows, caption="Darker is larger", text=3))
        )
    if not parts:
        return []
    note = "Words that differ between the versions are underlined; shading is a word's share of the importance."
    return [section("Sentences, explained", tag("p", note), *parts)]


def _shaded(words: Sequence[str], mask: Sequence[int], shares: Sequence[float | None]) -> Markup:
    most = max([share for share in shares if share is not None], default=0.0) or 1.0
    shown: list[Markup] = []
    for word, relevant, share in zip(words, mask, shares, strict=True):
        strength = round(100.0 * (share or 0.0) / most)
        style = f"background:color-mix(in srgb, var(--c1) {strength}%, transparent);padding:0 .2em"
        if relevant:
            style += ";text-decoration:underline"
        shown.append(tag("span", word, style=style, title=f"{share or 0.0:.3f}"))
    return join(*(piece for each in shown for piece in (each, " ")))


def _known(entries: Mapping[str, Info]) -> list[float]:
    values = [_value(entry, "median") for name, entry in entries.items() if name not in MODEL_FREE]
    return [value for value in values if math.isfinite(value)]


def _value(entry: Info, key: str) -> float:
    return float(entry.get(key, math.nan))


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else NOTHING


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else NOTHING
