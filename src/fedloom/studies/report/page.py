"""A study's report: one HTML file with every comparison, readable without a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import tomli_w

from fedloom.reporting.markup import Content, Markup, join, table, tag
from fedloom.reporting.page import collapsible, facts, page, section, write_page
from fedloom.reporting.quantities import NOTHING, plural, seconds_text
from fedloom.studies.claims import Verdict
from fedloom.studies.report.scenario import scenario_section
from fedloom.studies.report.tables import interval, numbers_text, rounds_text
from fedloom.studies.results import ArmResult, ScenarioResult, StudyResult
from fedloom.studies.statistics import FEW, what_seeds_show

_PILL = {
    "supported": "done",
    "not supported": "failed",
    "undecided": "unfinished",
    "not measured": "unfinished",
    "reported": "",
}
"""Class of the status mark for each outcome of a claim."""


def write_study(result: StudyResult, path: Path) -> Path:
    """Write the report in place of an older one; returns its path.

    Raises:
        StorageFull: the disk is full; an older report is untouched.
    """
    return write_page(path, render_study(result))


def render_study(result: StudyResult) -> str:
    """Return the report as an HTML document; any part of the grid may still be missing."""
    definition = result.definition
    return page(
        definition.title or definition.name,
        _heading(result),
        _overview(result),
        _claims(result),
        [scenario_section(definition, scenario, result.columns) for scenario in result.scenarios.values()],
        _failures(result),
        _origin(result),
    )


def _heading(result: StudyResult) -> Markup:
    definition = result.definition
    status = "failed" if result.failures else "done" if result.done == result.planned else "unfinished"
    missing = result.planned - result.done - len(result.failures)
    tiles = [
        ("runs", f"{result.done:,}", f"of {result.planned:,}"),
        ("scenarios", f"{len(definition.conditions):,}", ", ".join(definition.conditions)),
        ("arms", f"{len(definition.arms):,}", f"against {definition.reference}"),
        ("seeds", f"{definition.seeds.count:,}", f"from {definition.seeds.first}"),
        ("time", seconds_text(result.seconds), "of all runs, added up"),
    ]
    return join(
        tag(
            "header",
            tag("h1", definition.title or definition.name, tag("span", status, class_=f"status {status}")),
            tag("p", f"Study {definition.name}"),
        ),
        tag(
            "div",
            tag("p", f"{plural(missing, 'run')} not finished yet: the results cover the others."),
            class_="banner unfinished",
            role="note",
        )
        if missing > 0
        else None,
        tag(
            "dl",
            [tag("div", tag("dt", name), tag("dd", value, tag("small", detail))) for name, value, detail in tiles],
            class_="tiles",
        ),
    )


def _claims(result: StudyResult) -> Markup | None:
    if not result.verdicts:
        return None
    rows: list[list[Content]] = []
    before = ""
    for verdict in result.verdicts:
        rows.append(
            [
                _statement(verdict) if verdict.claim != before else None,
                [_figures([f"{verdict.arm}, {verdict.scenario}"]), tag("br"), _mark(verdict.outcome)],
                [
                    _figures(numbers_text(verdict)),
                    [tag("br"), tag("small", f"earlier: {verdict.earlier}")] if verdict.earlier else None,
                ],
            ]
        )
        before = verdict.claim
    head = ("claim", "arm, scenario", "result")
    shown = table(head, rows, caption="Claims and results", text=3)
    note = (
        "A claim is supported if the whole interval lies within its bounds, not supported if none of it does, else "
        "undecided. “Reported” claims set no bound; “earlier” is the result of a smaller study. Brackets are 95 % "
        "intervals over seeds: Student's t for means, order statistics for medians; those of final accuracies include "
        "the sampling error of the held-out examples if runs record which are classified correctly. p is a one-sided "
        "Wilcoxon test's, of primary claims only, after Holm's correction. "
        f"{what_seeds_show(result.definition.seeds.count) if result.definition.seeds.count <= FEW else ''}"
    )
    return section("Claims", shown, tag("p", note, class_="note"))


def _statement(verdict: Verdict) -> Content:
    bounds = f"claimed: {', '.join(verdict.bounds)}" if verdict.bounds else "no bound set"
    bounds_text = f"primary; {bounds}" if verdict.primary else bounds
    cells = (tag("strong", verdict.claim), tag("br"), verdict.text, tag("br"), tag("small", bounds_text))
    return tag("div", *cells, style="min-width:17em")


def _mark(outcome: str) -> Markup:
    kind = f"status {_PILL[outcome]}".rstrip()
    return tag("span", outcome, class_=kind, style="white-space:nowrap;margin-left:0")


def _figures(texts: Iterable[str]) -> Content:
    """Put each text on a separate line, without breaks."""
    lines = [[tag("br") if index else None, text] for index, text in enumerate(texts)]
    return tag("span", lines, class_="figures") if lines else NOTHING


def _overview(result: StudyResult) -> Markup | None:
    """Return rounds to target over all scenarios: the whole study in one table."""
    reference = result.definition.reference
    shown = {name: each for name, each in result.scenarios.items() if any(arm.runs for arm in each.arms.values())}
    if not shown:
        return None
    rows: list[list[Content]] = [
        [
            [name, tag("br"), tag("small", arm.title)],
            *(_overview_cell(each, name, reference) for each in shown.values()),
        ]
        for name, arm in result.definition.arms.items()
    ]
    return section(
        "Overview",
        table(
            ("arm", *shown),
            rows,
            caption=f"Cost to reach the target, relative to {reference} (lower is better)",
        ),
        tag(
            "p",
            "Bold: the median of the rounds. Then the median paired ratio of rounds and its interval; then the same "
            "ratio of local trainings, and of bytes up and down.",
            class_="note",
        ),
    )


def _overview_cell(scenario: ScenarioResult, name: str, reference: str) -> Content:
    arm: ArmResult | None = scenario.arms.get(name)
    if arm is None or "rounds" not in arm.estimates:
        return NOTHING
    ratio = arm.estimates.get("rounds_ratio")
    rounds = tag("strong", rounds_text(arm))
    if name == reference or ratio is None:
        return rounds
    costs = [
        f"{arm.estimates[key].value:.2f} {word}"
        for key, word in (("trainings_to_target_ratio", "trainings"), ("bytes_to_target_ratio", "bytes"))
        if key in arm.estimates
    ]
    return [
        rounds,
        tag("br"),
        tag("small", interval(ratio, digits=2)),
        [tag("br"), tag("small", ", ".join(costs))] if costs else None,
    ]


def _failures(result: StudyResult) -> Markup | None:
    if not result.failures:
        return None
    rows = [(key, error.splitlines()[0] if error else NOTHING) for key, error in result.failures.items()]
    return section("Failed runs", table(("run", "why"), rows, caption="Not included in any number above", text=2))


def _origin(result: StudyResult) -> Markup:
    definition = result.definition
    command = " ".join(["fedloom study", definition.name, *(f"--set {text}" for text in result.overrides)])
    written = tomli_w.dumps(_without_none(definition.model_dump(mode="json", exclude_none=True, exclude_defaults=True)))
    return section(
        "Origin",
        tag("p", "To reproduce: ", tag("code", command), ". Every run has its own folder and report."),
        facts(dict(result.environment), "Environment") if result.environment else None,
        collapsible("Definition", tag("pre", written)),
    )


def _without_none(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}
