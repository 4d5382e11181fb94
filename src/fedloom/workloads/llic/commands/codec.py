"""Compress images with the model of a run, and decompress them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.core.errors import UsageError
from fedloom.core.extras import needed_by

if TYPE_CHECKING:
    from fedloom.workloads.llic.bitstream import ImageCodec

RunOption = Annotated[Path, typer.Option("--run", metavar="RUN", help="The folder of a run of llic.")]


def build_command() -> typer.Typer:
    """Return `fedloom codec` with its verbs."""
    app = typer.Typer(help=__doc__, no_args_is_help=True)
    app.callback()(_group)
    app.command("encode")(encode)
    app.command("decode")(decode)
    app.command("info")(info)
    app.command("compare")(compare)
    return app


def _group() -> None:
    """Compress images with the model of a run, and decompress them."""


def encode(
    image: Annotated[Path, typer.Argument(help="An image of 8 bits per channel.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="The compressed file to write.", show_default=False)],
    run: RunOption,
) -> None:
    """Compress an image.

    Colour and grey images of any size; an alpha channel is kept without loss. The file can be decompressed with the
    same model only.
    """
    from fedloom.workloads.llic.pixels import read_pixels

    pixels, codec = read_pixels(image), _codec(run)
    data = codec.encode(pixels).pack()
    _write(file, data)
    typer.echo(f"{file}: {len(data):,} bytes, {8 * len(data) / pixels.size:.3f} bits per pixel")


def decode(
    file: Annotated[Path, typer.Argument(help="A compressed file.", show_default=False)],
    image: Annotated[Path, typer.Argument(help="The image to write; .png is without loss.", show_default=False)],
    run: RunOption,
) -> None:
    """Decompress an image with the run that compressed it."""
    from fedloom.workloads.llic.container import read_container
    from fedloom.workloads.llic.pixels import write_pixels

    container, codec = read_container(file), _codec(run)
    pixels = codec.decode(container, str(file))
    write_pixels(pixels, image)
    typer.echo(f"{image}: {container.width} x {container.height} pixels")


def info(file: Annotated[Path, typer.Argument(help="A compressed file.", show_default=False)]) -> None:
    """Show what is in a compressed file."""
    from fedloom.workloads.llic.container import OVERHEAD, read_container

    found = read_container(file)
    alpha = "none" if found.alpha is None else f"{len(found.alpha):,} bytes"
    total = OVERHEAD + len(found.z) + len(found.y) + len(found.alpha or b"")
    typer.echo(f"image:          {found.width} x {found.height}, {'grey' if found.grey else 'colour'}")
    typer.echo(f"model:          {found.model.hex()}")
    typer.echo(f"bits per pixel: {8 * total / (found.width * found.height):.3f}")
    typer.echo(f"hyper-latent:   {len(found.z):,} bytes")
    typer.echo(f"latent:         {len(found.y):,} bytes")
    typer.echo(f"alpha:          {alpha}")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs of llic that differ in lambda.", metavar="RUN…")],
) -> None:
    """Compare runs of one codec at several lambdas with other formats: Bjøntegaard's mean difference of rates.

    It needs four runs or more whose range of PSNR overlaps a format's; otherwise n/a is shown, with the reason.
    """
    from fedloom.workloads.llic.curves import bd_rates, point, require_reading
    from fedloom.workloads.llic.rivals import TITLES

    readings = [require_reading(run) for run in runs]
    for run, reading in zip(runs, readings, strict=True):
        rate, quality = point(reading)
        typer.echo(f"{run}: {rate:.3f} bits per pixel, {quality:.2f} dB")
    for rival, found in bd_rates(readings).items():
        typer.echo(f"against {TITLES[rival]}: {found.text}")


def _codec(run: Path) -> ImageCodec:
    with needed_by("fedloom codec"):
        from fedloom import api
        from fedloom.workloads.llic.saved_codec import saved_codec
    return saved_codec(api.saved_state(run))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as exc:
        raise UsageError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
