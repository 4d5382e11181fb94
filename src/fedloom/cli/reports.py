"""Commands that read run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.experiments import RunDir, Settings
from fedloom.cli.terminal import output

_MOST_SHOWN = 5


def report(run_dir: RunDir) -> None:
    """Regenerate a run's report from its folder; prints its path."""
    from fedloom.reporting.report import write_report
    from fedloom.reporting.run_folder import of_any_origin

    with of_any_origin(run_dir):
        typer.echo(str(write_report(run_dir)))


def replay(run_dir: RunDir, settings: Settings = []) -> None:  # noqa: B006  # typer reads the default, nobody changes it
    """Replay a run's client selection from its log, or try another selection with --set.

    Exit code 1 if the run's own selection does not reproduce the log.
    """
    from fedloom.core.errors import RunFailed
    from fedloom.server.rounds.choices import replay_run

    rounds = replay_run(run_dir, settings)
    places = sum(len(each.choice.cohort) for each in rounds)
    same = sum(len(set(each.cohort) & set(each.choice.cohort)) for each in rounds)
    differing = [each for each in rounds if not each.agrees]
    output().print(
        f"{len(rounds)} rounds, {len(rounds) - len(differing)} as recorded; {same} of {places} clients the same"
    )
    for each in differing[:_MOST_SHOWN]:
        output().print(f"  round {each.choice.round}: recorded {each.choice.cohort}, now {list(each.cohort)}")
    if differing and not settings:
        raise RunFailed(
            f"{run_dir}: round {differing[0].choice.round} differs from its log. Was the log edited, or "
            "written by another version?"
        )


def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Two or more runs' folders.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The comparison page to write.")] = Path("comparison.html"),
    chart: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Also write one chart, as an SVG file for a paper."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="The metric of --chart; the first measured, after the loss.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(metavar="COST", help="Axis of --chart: rounds, megabytes, trainings or seconds."),
    ] = "rounds",
) -> None:
    """Compare runs: print a table, and write a page with their curves in one chart."""
    from fedloom.reporting import chart_file, comparison, comparison_page
    from fedloom.reporting.run_folder import of_any_origin

    with of_any_origin(*run_dirs):
        compared = comparison.compare(run_dirs)
        drawn = chart_file.write_chart(compared, chart, metric, against) if chart else None
        place = comparison_page.write_picture(compared, out)
    console = output()
    comparison.print_comparison(console, compared)
    console.print(f"\ncurves: {place}", soft_wrap=True)
    if drawn:
        console.print(f"chart: {drawn}", soft_wrap=True)
