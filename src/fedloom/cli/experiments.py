"""Commands that run, check, list and show experiments."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fedloom.cli.terminal import output, print_table
from fedloom.core.kinds import Kind

if TYPE_CHECKING:
    from fedloom.api import RunResult
    from fedloom.core.history import RunSummary
    from fedloom.core.protocols import Sink


class Runtime(StrEnum):
    """Location of the clients."""

    ray = "ray"
    process = "process"
    inline = "inline"


_LISTED = ("presets", *Kind, "studies")
"""Kinds of names to list."""
Target = Annotated[
    str,
    typer.Argument(help="A preset's name, a TOML file, a Flower app's folder, or a program that simulates one."),
]
RunDir = Annotated[Path, typer.Argument(help="A run's folder, such as runs/<id>.", show_default=False)]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as strategy.mu=0.1. May be repeated."),
]
RuntimeOption = Annotated[
    Runtime | None, typer.Option(help="Where the clients run; by default the experiment's runtime.")
]
Workers = Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of agents; by default one per core.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="A running Ray cluster, or `auto`. Default: RAY_ADDRESS if set, otherwise Ray is started here.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the run's summary as one JSON object on stdout; the rest goes to stderr.")
]


def run(
    target: Target,
    settings: Settings = [],  # noqa: B006  # typer reads the default, nobody changes it
    runtime: RuntimeOption = None,
    workers: Workers = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of all randomness: same seed, same bits.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; by default runs/<id>.")] = None,
    ray_address: RayAddress = None,
    json: Json = False,
) -> None:
    """Run an experiment and write its report.

    An existing run is never overwritten. Ctrl-C saves and stops; `fedloom resume` continues.
    """
    from fedloom import api
    from fedloom.client.leftovers import ending_what_it_starts

    overrides = [
        *settings,
        *([f"seed={seed}"] if seed is not None else []),
        *runtime_settings(runtime, workers, ray_address),
    ]
    experiment = api.load(target, overrides)
    source = Path(target) if Path(target).exists() else None
    inline = experiment.runtime.name == "inline"  # the other runtimes end what their agents start
    with ending_what_it_starts() if inline else contextlib.nullcontext():
        show_run(lambda sinks: api.run(experiment, out=out, sinks=sinks, source=source), json)


def check(
    target: Annotated[
        str, typer.Argument(help="A plug-in's Python file or folder, a TOML file, a preset's name.", metavar="FILE")
    ],
    settings: Settings = [],  # noqa: B006  # typer reads the default, nobody changes it
) -> None:
    """Check plug-ins: one round with two clients here, of which nothing is left. Exit code 2 names file and line."""
    from fedloom import api
    from fedloom.client.leftovers import ending_what_it_starts

    with ending_what_it_starts():
        checked = api.check_file(target, settings)
    found = ", ".join(checked.parts) or "no plug-in of your own"
    typer.echo(f"{target}: {found}: one round with two clients succeeded")


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            click_type=click.Choice([*map(str, _LISTED)]),
            metavar=f"[{'|'.join(_LISTED)}]",
            help="What to list; by default everything.",
        ),
    ] = None,
) -> None:
    """List what is installed: presets, plug-ins of every kind, studies."""
    console = output()
    for each in [kind] if kind else _LISTED:
        print_table(console, (str(each), ""), _described(each))
        if kind is None:
            console.print()


def show(preset: Annotated[str, typer.Argument(help="A preset's name; see `fedloom list presets`.")]) -> None:
    """Print a preset's TOML, ready to be saved and changed."""
    from fedloom import api

    typer.echo(api.preset_path(preset).read_text(encoding="utf-8"), nl=False)


def runtime_settings(runtime: Runtime | None, workers: int | None, ray_address: str | None) -> list[str]:
    """Return the options as settings."""
    given = {
        "name": f'"{runtime.value}"' if runtime else None,
        "workers": workers,
        "ray_address": f"'{ray_address}'" if ray_address else None,
    }
    return [f"runtime.{key}={value}" for key, value in given.items() if value is not None]


def show_run(start: Callable[[Sequence[Sink]], RunResult], json: bool) -> None:
    """Run an experiment, show its progress in the terminal, and how it ended."""
    from fedloom.core.errors import UsageError
    from fedloom.reporting.console import ConsoleSink

    sink = ConsoleSink(output(to_stderr=json))
    summary: RunSummary | None = None
    try:
        with _users_prints_on_stderr() if json else contextlib.nullcontext():
            summary = start([sink]).summary
    except UsageError:
        if not (sink.summary and sink.summary.rounds):
            sink.summary = None  # it never began: the error is enough
        raise
    finally:
        sink.close()
        summary = summary or sink.summary
        if summary is not None:
            print_summary(summary, json)
    check_finite(summary)


@contextlib.contextmanager
def _users_prints_on_stderr() -> Iterator[None]:
    """Send to stderr what a user's code prints, here and in worker processes: stdout is for the JSON alone."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def check_finite(summary: RunSummary | None) -> None:
    """Raise `RunFailed` for a run that is done, but whose last evaluation is missing or not finite."""
    from fedloom.core.errors import RunFailed

    if summary is not None and summary.status == "done" and summary.not_finite:
        raise RunFailed(
            f"the run is done, but its last evaluation has no finite value of {', '.join(summary.not_finite)}. The "
            "model is saved as it is; try a smaller learning rate, on the server too"
        )


def print_summary(summary: RunSummary, json: bool, *, elsewhere: bool = False) -> None:
    """Print the result for people, and with `json` for programs, as the last line of stdout.

    If the run is on another machine, its paths are not printed.
    """
    from fedloom.reporting.console import print_result, print_tables

    print_result(output(to_stderr=json), summary.model_copy(update={"run_dir": None}) if elsewhere else summary)
    if summary.run_dir is not None and not elsewhere and summary.status == "done":
        print_tables(output(to_stderr=json), summary.run_dir)
    if json:
        typer.echo(summary.model_dump_json())


def _described(kind: str) -> list[tuple[str, str]]:
    if kind == "presets":
        from fedloom import api

        return [(name, _first_comment(api.preset_path(name))) for name in api.presets()]
    if kind == "studies":
        from fedloom.studies.definition_files import titles

        return list(titles().items())
    from fedloom.core import registry

    return [(name, registry.summary(kind, name)) for name in registry.names(kind)]


def _first_comment(preset: Path) -> str:
    """Return the preset's description: its first line."""
    first, _, _ = preset.read_text(encoding="utf-8").partition("\n")
    return first.lstrip("# ").strip() if first.startswith("#") else ""
