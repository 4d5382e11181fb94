"""The estimation's part of a run's report: the table of estimators, a scatter for each, the ablations."""

from __future__ import annotations

import math

from fedloom.reporting.charts import Series, scatter_chart
from fedloom.reporting.markup import Content, Markup, table, tag
from fedloom.reporting.page import collapsible, section
from fedloom.reporting.plugins import Contribution
from fedloom.reporting.quantities import NOTHING
from fedloom.reporting.run_folder import RunFolder
from fedloom.strategies.mano.evaluation import ESTIMATORS, ETAS, VARIANTS, Evaluation, Table, numbers, read
from fedloom.strategies.mano.monitor.fits import Line

_GROUPS = {
    "mild": "mild corruptions",
    "harsh": "harsh corruptions",
    "style": "styles",
    "subpopulation": "corrupted unseen styles",
}
_MOST_NAMES = 12
_RHO = "\N{GREEK SMALL LETTER RHO}"


def build_report(run: RunFolder) -> Contribution:
    """Return sections and numbers; none if the run has not reached its last round."""
    reported = next((record.info["mano"] for record in reversed(run.rounds) if "mano" in record.info), None)
    labels = run.workload.label_names if run.workload else ()
    if reported is None or not labels:
        return Contribution()
    evaluation = read(reported, len(labels))
    parts = [
        _table(evaluation),
        *(_scatters(group, each) for group, each in evaluation.tables.items()),
        _ablation(evaluation),
    ]
    return Contribution(sections=tuple(parts) if evaluation.tables else (), numbers=numbers(evaluation))


def _table(evaluation: Evaluation) -> Markup:
    count = sum(len(each.names) for each in evaluation.tables.values())
    return section(
        "Accuracy without labels",
        tag(
            "p",
            f"Each of {count} shifted sets is scored without labels. R² is the squared correlation of score and "
            f"true accuracy over a group of sets, {_RHO} the absolute rank correlation. The error is of a line from "
            "score to accuracy, fitted on nine tenths of the sets and tested on the last, in points of accuracy (mean "
            "over random splits). On the unmodified test images the model's accuracy is "
            f"{_percent(evaluation.clean.get('accuracy', math.nan))}.",
        ),
        [_group_table(group, each) for group, each in evaluation.tables.items()],
        [_branches(group, each) for group, each in evaluation.tables.items()],
    )


def _group_table(group: str, each: Table) -> Markup:
    still = each.without("geometric") if "geometric" in each.families else None
    fitted = {name: each.fit(name) for name in ESTIMATORS if name in each.scores}
    best = max((fit.r2 for fit in fitted.values() if math.isfinite(fit.r2)), default=math.nan)
    rows: list[tuple[Content, ...]] = []
    for name, fit in fitted.items():
        r2: Content = tag("strong", _two(fit.r2)) if fit.r2 == best else _two(fit.r2)
        row: tuple[Content, ...] = (ESTIMATORS[name], r2, _two(fit.rho), _points(fit.mae))
        if still is not None:
            without = still.fit(name)
            row = (*row, _two(without.r2), _two(without.rho), _points(without.mae))
        rows.append(row)
    head: tuple[str, ...] = ("estimator", "R²", _RHO, "error, points")
    if still is not None:
        head = (*head, "R², not geometric", _RHO, "error, points")
    low, high = _percent(each.accuracy.min()), _percent(each.accuracy.max())
    caption = f"{_title(group)}: {len(each.names)} sets, accuracy from {low} to {high}"
    return table(head, rows, caption=caption)


def _branches(group: str, each: Table) -> Markup:
    """Describe which normalisation was used, and the limits of confidence scores."""
    taylor = each.branches.count("taylor")
    ran = {0: "softmax for all", len(each.branches): "Taylor for all"}.get(taylor, f"Taylor for {taylor} sets")
    phi = sorted(each.criterion.tolist())
    words = (
        f"{_title(group)}: MaNo's branch was {ran}; the criterion Φ ranged from {phi[0]:.2f} over "
        f"{phi[len(phi) // 2]:.2f} (median) to {phi[-1]:.2f}."
    )
    collapsed = each.collapsed
    if not collapsed:
        return tag("p", words, class_="note")
    shown = ", ".join(collapsed[:_MOST_NAMES]) + (" …" if len(collapsed) > _MOST_NAMES else "")
    warning = (
        f" Predictions fall on few classes in {len(collapsed)} sets ({shown}): a high score does not indicate "
        "accuracy for them."
    )
    return tag("p", words + warning, class_="note")


def _scatters(group: str, each: Table) -> Markup:
    """Draw a picture for each estimator, points coloured by family, with the fitted line."""
    shown = [_scatter(ESTIMATORS[name], name, each) for name in ESTIMATORS if name in each.scores]
    pictures = tag("div", shown, class_="charts")
    title = f"Score against accuracy: {_title(group)}"
    return section(title, pictures) if group != "harsh" else section(title, collapsible("Show the pictures", pictures))


def _scatter(title: str, name: str, each: Table) -> Markup:
    scores = each.scores[name]
    families = list(dict.fromkeys(each.families))
    series = []
    for color, family in enumerate(families):
        rows = [index for index, own in enumerate(each.families) if own == family]
        series.append(
            Series(
                label=family,
                x=scores[rows].tolist(),
                y=each.accuracy[rows].tolist(),
                color=color,
                names=[each.names[row] for row in rows],
            )
        )
    line, ends = Line.through(scores, each.accuracy), [float(scores.min()), float(scores.max())]
    fitted = Series(label="line", x=ends, y=[line.slope * end + line.offset for end in ends], color=6)
    fit = each.fit(name)
    return scatter_chart(
        f"{title}: R² {_two(fit.r2)}, {_RHO} {_two(fit.rho)}", series, x_label="score; accuracy upwards", lines=[fitted]
    )


def _ablation(evaluation: Evaluation) -> Markup:
    groups = list(evaluation.tables)
    rows = [
        (label, *(_two(each.fit(name).r2) if name in each.scores else NOTHING for each in evaluation.tables.values()))
        for name, label in VARIANTS.items()
    ]
    by_eta = [
        (
            f"printed rule, η = {eta:g}",
            *(
                _two(each.r2(each.with_eta(eta, evaluation.classes, evaluation.rule["criterion"])))
                for each in evaluation.tables.values()
            ),
        )
        for eta in ETAS
    ]
    families = list(dict.fromkeys(name for each in evaluation.tables.values() for name in each.left_out("mano")))
    unseen = [
        (family, *(_points(each.left_out("mano").get(family, math.nan)) for each in evaluation.tables.values()))
        for family in families
    ]
    head = ("", *(_title(group) for group in groups))
    return section(
        "Sensitivity of MaNo",
        collapsible("R² of its variants, and of thresholds", table(head, [*rows, *by_eta], caption="R² over all sets")),
        table(
            ("excluded family", *(_title(group) for group in groups)),
            unseen,
            caption="MaNo's line through all other families, tested on this one: mean error in points of accuracy",
        ),
    )


def _title(group: str) -> str:
    return _GROUPS.get(group, group)


def _two(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else NOTHING


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else NOTHING


def _points(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else NOTHING
