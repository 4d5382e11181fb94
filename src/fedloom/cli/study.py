"""The command that runs a study: a grid of experiments, and the report that compares them."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.terminal import output


def study(
    target: Annotated[str, typer.Argument(metavar="STUDY", help="A study's name, or a TOML file.")],
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Seeds per scenario; by default the study's.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of concurrent runs; by default one per core.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The study's folder; by default studies/<name>.")
    ] = None,
    only: Annotated[
        list[str],
        typer.Option("--only", metavar="SCENARIO/ARM", help="Only these runs; * and ? are wildcards. May be repeated."),
    ] = [],  # noqa: B006  # typer reads the default, nobody changes it
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of every experiment, or (study.KEY) of the study. May be repeated.",
        ),
    ] = [],  # noqa: B006
    json: Annotated[
        bool, typer.Option("--json", help="Print the results as one JSON object on stdout; the rest goes to stderr.")
    ] = False,
) -> None:
    """Run a grid of experiments (scenarios by arms by seeds) and write one report that compares them.

    Finished runs are not repeated: after Ctrl-C, the same command continues. Studies: `fedloom list studies`.
    """
    from fedloom.studies import api
    from fedloom.studies.report.progress import Progress
    from fedloom.studies.report.terminal import print_study

    console = output(to_stderr=json)
    result, page = api.run(
        target, out=out, seeds=seeds, jobs=jobs, only=only, overrides=settings, watcher=Progress(console)
    )
    print_study(console, result, page)
    if json:
        typer.echo(json_text.dumps(result.summary(), allow_nan=False))
    api.require_all(result)
