"""The command that resumes a run, in its folder on this machine or on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.experiments import Json, RayAddress, RuntimeOption, Workers, runtime_settings, show_run
from fedloom.cli.identities import IdentityFolder
from fedloom.cli.reaching import Server, TokenFile, reach
from fedloom.cli.terminal import print_line
from fedloom.core.errors import UsageError


def resume(
    run: Annotated[
        Path,
        typer.Argument(help="A run's folder, such as runs/<id>, or the id of a run on a server.", show_default=False),
    ],
    runtime: RuntimeOption = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Total number of rounds, counted from the run's first.")
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting that may change: best.patience, or one of checkpoint and runtime. Repeatable.",
        ),
    ] = [],  # noqa: B006  # typer reads the default, nobody changes it
    as_continuation: Annotated[
        bool,
        typer.Option("--as-continuation", help="Take --rounds though the run's state depends on its number of rounds."),
    ] = False,
    json: Json = False,
    server: Server = None,
    identity: IdentityFolder = None,
    token_file: TokenFile = None,
) -> None:
    """Resume a run that was interrupted, failed or killed; the result is the same as without the interruption.

    A folder is resumed here. Anything else is the id of a run on a server, which queues it again.
    """
    from fedloom import api
    from fedloom.reporting.run_folder import require_run_folder

    here = [*settings, *runtime_settings(runtime, workers, ray_address)]
    if not run.exists() and len(run.parts) == 1:
        if here or json:
            raise UsageError(
                f"there is no folder {str(run)!r} (looked in {Path.cwd()}), and --set, --runtime, --workers, "
                "--ray-address and --json are for runs on this machine. Omit them to resume a run on a server"
            )
        _resume_there(str(run), rounds, as_continuation, (server, identity, token_file))
        return
    overrides = [*here, *([] if rounds is None else [f"rounds={rounds}"])]
    folder = require_run_folder(run)
    show_run(lambda sinks: api.resume(folder, overrides=overrides, sinks=sinks, as_continuation=as_continuation), json)


def _resume_there(
    run: str, rounds: int | None, as_continuation: bool, way: tuple[str | None, Path | None, Path | None]
) -> None:
    """Queue a run again on its server."""
    from fedloom.client.results import ResultsClient

    try:
        results = reach(ResultsClient, *way)
    except UsageError as exc:
        raise UsageError(
            f"{run!r} is no folder here (looked in {Path.cwd()}), so it was taken for a run on a server: {exc}"
        ) from exc
    with results:
        resumed = results.resume(run, rounds, as_continuation=as_continuation)
    wanted = resumed.rounds or "an open number of"
    print_line(f"{run} was {resumed.status}, and is queued: {resumed.rounds_done} of {wanted} rounds are done")
