"""The median ensemble's part of a run's report: curves, the gap, the table of attacks, the spread of weights."""

from __future__ import annotations

import math

from fedloom.reporting.charts import Series, bar_chart, line_chart
from fedloom.reporting.example_scores import ExampleScores
from fedloom.reporting.markup import Content, Markup, table, tag
from fedloom.reporting.page import section
from fedloom.reporting.plugins import Contribution
from fedloom.reporting.quantities import NOTHING, seconds_text
from fedloom.reporting.run_folder import RunFolder
from fedloom.strategies.meat.evaluation import (
    ENSEMBLE,
    Evaluation,
    difference,
    error,
    example_scores,
    numbers,
    read,
    withstood,
)
from fedloom.strategies.meat.outliers import EDGES, OUTLYING

_COLORS = {"last": 1, ENSEMBLE: 0, "mean": 2, "middle": 3, "ema": 4, "seat": 5, "best": 6, "trimmed": 7}
_ATTACKS = {"apgd": "APGD-CE and APGD-T", "autoattack": "AutoAttack"}


def build_report(run: RunFolder) -> Contribution:
    """Return sections and numbers; none if the run compared no models."""
    evaluation = read((record.round, record.info["meat"]) for record in run.rounds if record.info.get("meat"))
    if not evaluation.curves:
        return Contribution()
    parts = [_robustness(evaluation)]
    if evaluation.verdicts:
        parts.append(_attacks(evaluation))
    if evaluation.spread:
        parts.append(_outliers(evaluation))
    scores = {
        name: ExampleScores(values, f"the first {len(values)} test images")
        for name, values in example_scores(evaluation).items()
    }
    return Contribution(sections=tuple(parts), numbers=numbers(evaluation), scores=scores)


def _robustness(evaluation: Evaluation) -> Markup:
    window = (
        f"Since round {evaluation.window[0]} every round's weights are stored; the published model is their "
        f"coordinate-wise {evaluation.kind}, of {len(evaluation.window)} snapshots at the end."
        if evaluation.window
        else "No snapshot was taken yet, so the published model is the round's own."
    )
    return section(
        "Robustness",
        tag(
            "p",
            f"{window} Training continues from the last round's weights, never from the ensemble. Robust accuracy is "
            "the fraction of test images classified correctly after an attack by projected gradients (PGD).",
        ),
        tag("div", _chart(evaluation, "robust"), _chart(evaluation, "clean"), class_="charts"),
        _gaps(evaluation),
    )


def _chart(evaluation: Evaluation, what: str) -> Markup:
    shown = {model: curve for model, curve in evaluation.curves.items() if model != "best"}
    series = [
        Series(
            label=evaluation.label(model),
            x=curve.rounds,
            y=curve.robust if what == "robust" else curve.clean,
            color=_COLORS.get(model, 7),
        )
        for model, curve in shown.items()
    ]
    return line_chart(f"{what.capitalize()} accuracy on test images", series, x_label="round", x_whole=True)


def _gaps(evaluation: Evaluation) -> Markup:
    rows = [
        (
            evaluation.label(model),
            _percent(curve.clean[-1]),
            _percent(curve.robust[-1]),
            curve.rounds[curve.best],
            _percent(curve.robust[curve.best]),
            _points(curve.gap),
        )
        for model, curve in ((model, evaluation.whole(model)) for model in evaluation.curves)
        if model != "best"
    ]
    return table(
        ("model", "clean, last round", "robust, last round", "best round", "robust, best round", "gap, points"),
        rows,
        caption="Robust overfitting: the gap is robust accuracy at the best round minus that at the last. The best "
        "round is chosen on images held back from training, so a gap may come out negative. Before the first snapshot "
        "every combination is the round's own weights",
    )


def _attacks(evaluation: Evaluation) -> Markup:
    columns = list(dict.fromkeys(attack for verdicts in evaluation.verdicts.values() for attack in verdicts))
    count = len(next(iter(next(iter(evaluation.verdicts.values())).values())))
    rows = [
        (evaluation.label(model), *(_percent(withstood(verdicts.get(attack, ""))) for attack in columns))
        for model, verdicts in evaluation.verdicts.items()
    ]
    strongest = columns[-1]
    share = withstood(evaluation.verdicts[ENSEMBLE][strongest])
    name = _ATTACKS.get(strongest, strongest)
    took = sum(evaluation.seconds.values())
    return section(
        "Attacks",
        tag(
            "p",
            f"All models of the last round on the same {count} test images: the fraction still classified correctly.  "
            f"With this number of images {_percent(share)} is known to ± {100 * error(share, count):.1f} points. "
            f"The attacks took {seconds_text(took)} of work.",
        ),
        table(
            ("model", *(_ATTACKS.get(attack, attack) for attack in columns)),
            rows,
            caption="The stages of AutoAttack precede it; each attacks the points still correct after earlier stages",
        ),
        table(
            ("published model against", "difference, points", "95 % interval", "only ours", "only theirs", "p"),
            _paired(evaluation, strongest),
            caption=f"{name}, point by point: images classified correctly by one model only (exact McNemar test)",
        ),
    )


def _paired(evaluation: Evaluation, attack: str) -> list[tuple[Content, ...]]:
    own, rows = evaluation.verdicts[ENSEMBLE][attack], list[tuple[Content, ...]]()
    for model, verdicts in evaluation.verdicts.items():
        if model == ENSEMBLE:
            continue
        found = difference(own, verdicts[attack])
        interval = f"{_points(found.low)} to {_points(found.high)}"
        rows.append(
            (
                evaluation.label(model),
                _points(found.value),
                interval,
                found.only_first,
                found.only_second,
                f"{found.p:.3f}",
            )
        )
    return rows


def _outliers(evaluation: Evaluation) -> Markup:
    counts = evaluation.spread["counts"]
    total = max(sum(counts), 1)
    rows = [
        (_bin(low, high), _share(count / total), _share(_normal(low, high)))
        for low, high, count in zip(EDGES[:-1], EDGES[1:], counts, strict=True)
    ]
    outlying = [100 * share for share in evaluation.spread["outlying"]]
    return section(
        "Weight outliers",
        tag(
            "p",
            "How far the weights of each snapshot lie from the median over the snapshots, in robust standard "
            f"deviations of their coordinate: |z| ≥ {OUTLYING:g} counts as an outlier. A median is useful if there "
            "are such weights. It is not if weights drift one way: "
            f"{100 * evaluation.spread['monotone']:.1f} % of the coordinates only rise or only fall over the window, "
            "and for these the median is the middle snapshot.",
        ),
        tag(
            "div",
            bar_chart(
                "Outlying weights, % of each snapshot",
                {"outlying": outlying},
                x_label="round",
                first=evaluation.window[0] if evaluation.window else 1,
            ),
            class_="charts",
        ),
        table(("|z|", "weights", "if normal"), rows, caption="Distribution of all weights of all snapshots"),
    )


def _bin(low: float, high: float) -> str:
    return f"{low:g} and more" if math.isinf(high) else f"{low:g} to {high:g}"


def _normal(low: float, high: float) -> float:
    """Return the probability that |z| of a standard normal is between the two."""
    upper = 1.0 if math.isinf(high) else math.erf(high / math.sqrt(2.0))
    return upper - math.erf(low / math.sqrt(2.0))


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else NOTHING


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
