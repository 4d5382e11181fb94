"""Commands on the adapters of low-rank runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.experiments import RunDir
from fedloom.cli.terminal import Verb, output

app = typer.Typer(help="Adapters of a low-rank run, in PEFT's form.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Adapters of a low-rank run, in PEFT's form."""


@app.command("export", cls=Verb)
def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write, new or empty.")],
) -> None:
    """Write a run's newest adapters as a folder that `peft.PeftModel.from_pretrained` loads.

    Where the run changed the weights beneath them (whole-model rounds, changes merged into the base), these are in
    `base.safetensors` beside the adapters. A run starts from such a folder with `--set strategy.adapters=FOLDER`.
    """
    from fedloom import adapters

    written = adapters.export(run_dir, out)
    ranks = sorted(set(written.ranks.values()))
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    head = f", and {len(written.head)} arrays of the head" if written.head else ""
    console = output()
    console.print(f"adapters of round {written.round}: {len(written.ranks)} modules, rank {shown}{head}")
    console.print(f"folder: {written.folder}", soft_wrap=True)
    if written.base is not None:
        console.print(f"base:   {written.base} (load it into the model first)", soft_wrap=True)
