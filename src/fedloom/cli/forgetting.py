"""The command that lets a client withdraw from a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.experiments import Json
from fedloom.cli.terminal import output, print_table

if TYPE_CHECKING:
    from fedloom.erasure.record import Erasure, ModelFacts


class Method(StrEnum):
    """How a client's contribution is undone."""

    drop = "drop"
    noisy_labels = "noisy_labels"
    gradient_ascent = "gradient_ascent"
    negate_update = "negate_update"
    calibrate = "calibrate"


def forget(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, such as runs/<id>.", show_default=False)],
    client: Annotated[int, typer.Option(min=0, metavar="K", help="The client that withdraws.", show_default=False)],
    method: Annotated[
        Method,
        typer.Option(
            help="drop: rounds without the client. noisy_labels: it trains on random classes first. gradient_ascent: "
            "it maximises its loss first, within a ball. negate_update: its last change is subtracted first. "
            "calibrate: stored rounds are repeated without it. The last two need checkpoint.client_updates = true."
        ),
    ] = Method.drop,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Rounds without the client; by default a tenth of the run's."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The new run's folder; by default <run>-without-K.")
    ] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete the old run's models, checkpoints and stored updates.")
    ] = False,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="Also train anew without the client, and measure the distance to that model."),
    ] = False,
    json: Json = False,
) -> None:
    """Continue a run without one of its clients, whose contribution is undone; see erasure.json in the new folder.

    The old run is marked and cannot be resumed. It stays as it is if anything fails.
    """
    from fedloom.erasure.forget import forget as let_withdraw
    from fedloom.reporting.console import ConsoleSink
    from fedloom.reporting.run_folder import require_run_folder

    folder = require_run_folder(run)
    target = out if out is not None else folder.with_name(f"{folder.resolve().name}-without-{client}")
    sink = ConsoleSink(output(to_stderr=json))
    try:
        erasure = let_withdraw(
            folder,
            client=client,
            method=method.value,
            rounds=rounds,
            out=target,
            purge=purge,
            retrain=retrain,
            sinks=[sink],
        )
    finally:
        sink.close()
    _print(erasure, target, json)


def _print(erasure: Erasure, target: Path, json: bool) -> None:
    models = [("before", erasure.before), ("after", erasure.after)]
    models += [("trained anew without the client", erasure.retrained)] if erasure.retrained is not None else []
    names = list(dict.fromkeys(name for _, model in models for name in (*model.evaluation, *model.on_client)))
    console = output(to_stderr=json)
    console.print()
    print_table(
        console,
        ("model", *names, *(f"{name}, client's data" for name in names), "distance to trained anew"),
        [(label, *_cells(model, names)) for label, model in models],
    )
    cost, jobs = erasure.cost, erasure.jobs_of_client_after
    console.print(
        f"\nClient {erasure.client} has withdrawn ({erasure.method}): {cost.forgetting + cost.recovering} local "
        f"trainings, {cost.share:.0%} of training anew; it was given {jobs} jobs in the rounds without it.\n"
        f"New run: {target}. {erasure.original} cannot be resumed any more"
        + (f"; deleted there: {', '.join(erasure.purged)}." if erasure.purged else "; --purge deletes its models.")
    )
    if json:
        typer.echo(erasure.model_dump_json())


def _cells(model: ModelFacts, names: list[str]) -> list[str]:
    values = [facts.get(name) for facts in (model.evaluation, model.on_client) for name in names]
    return ["n/a" if value is None else f"{value:.4g}" for value in (*values, model.distance_to_retrained)]
