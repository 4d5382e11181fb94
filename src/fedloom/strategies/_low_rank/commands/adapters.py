"""Adapters of a low-rank run, in PEFT's form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build_command() -> typer.Typer:
    """Return `fedloom adapters` with its verbs."""
    app = typer.Typer(help=__doc__, no_args_is_help=True)
    app.callback()(_group)
    app.command("export")(export)
    return app


def _group() -> None:
    """Adapters of a low-rank run, in PEFT's form."""


def export(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder, such as runs/<id>.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write, new or empty.")],
) -> None:
    """Write a run's newest adapters as a folder that `peft.PeftModel.from_pretrained` loads.

    If the run changed the weights beneath them (whole-model rounds, changes merged into the base), these are in
    `base.safetensors` next to the adapters. A run starts from such a folder with `--set strategy.adapters=FOLDER`.
    """
    from fedloom import api
    from fedloom.strategies._low_rank.export import export as write

    written = write(api.saved_state(run_dir), out)
    ranks = sorted(set(written.ranks.values()))
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    head = f", and {len(written.head)} arrays of the head" if written.head else ""
    typer.echo(f"adapters of round {written.round}: {len(written.ranks)} modules, rank {shown}{head}")
    typer.echo(f"folder: {written.folder}")
    if written.base is not None:
        typer.echo(f"base:   {written.base} (load it into the model first)")
