"""Commands that read run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.experiments import RunDir
from fedloom.cli.terminal import output


def report(run_dir: RunDir) -> None:
    """Write a run's report again, from what the folder holds now; prints its place."""
    from fedloom.reporting.report import write_report

    typer.echo(str(write_report(run_dir)))


def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Two or more runs' folders.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page with the overlaid curves goes.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Put runs side by side: a table here, their curves over each other in a page."""
    from fedloom.reporting import comparison

    compared = comparison.compare(run_dirs)
    place = comparison.write_picture(compared, out)
    console = output()
    comparison.print_comparison(console, compared)
    console.print(f"\ncurves: {place}", soft_wrap=True)
