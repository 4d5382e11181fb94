"""A study's tables in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedloom.reporting.plain import harmless
from fedloom.reporting.quantities import seconds_text
from fedloom.studies.report.tables import Column, interval, numbers_text, result_columns, rows
from fedloom.studies.results import ScenarioResult, StudyResult

_STYLES = {
    "supported": "green",
    "not supported": "red",
    "undecided": "yellow",
    "not measured": "yellow",
    "reported": "",
}


def print_study(console: Console, result: StudyResult, page: Path) -> None:
    """Print a table per scenario, the claims, and the report's path."""
    for scenario in result.scenarios.values():
        if any(arm.runs for arm in scenario.arms.values()):
            console.print(_table(result, scenario))
            console.print()
    for verdict in result.verdicts:
        text = Text(f"{verdict.outcome:>12}  ", style=_STYLES[verdict.outcome])
        reported = "; ".join(numbers_text(verdict))
        text.append(
            harmless(f"{verdict.claim}, {verdict.arm}, {verdict.scenario}{': ' + reported if reported else ''}"),
            style="default",
        )
        console.print(text, soft_wrap=True)
    failed = f", {len(result.failures)} failed" if result.failures else ""
    console.print(f"\n{result.done} of {result.planned} runs done{failed}, {seconds_text(result.seconds)} of run time")
    console.print(f"report: {page}", soft_wrap=True)


def _table(result: StudyResult, scenario: ScenarioResult) -> Table:
    columns = [*result_columns(result.definition), *_extra(scenario)]
    shown = Table(
        title=Text(f"{scenario.title}: target {scenario.target:.4f}"),
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    shown.add_column("arm")
    for column in columns:
        shown.add_column(Text(column.name), justify="right")
    for row in rows(scenario, columns):
        shown.add_row(*(Text(harmless(cell)) for cell in row))
    return shown


def _extra(scenario: ScenarioResult) -> list[Column]:
    columns = [
        Column("trainings ratio", lambda arm: interval(arm.estimates.get("trainings_to_target_ratio"), digits=2))
    ]
    if any("kl" in arm.estimates for arm in scenario.arms.values()):
        columns.append(Column("KL", lambda arm: interval(arm.estimates.get("kl"), digits=2)))
    return columns
