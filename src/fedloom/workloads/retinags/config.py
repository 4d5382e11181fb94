"""Settings of model-parallel Gaussian splatting."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import PluginSettings, Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import DataPath

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]


class Synthetic(Settings):
    """A scene made in code: a ground, a ball and two walls of coloured splats, photographed from an orbit."""

    source: Literal["synthetic"] = "synthetic"
    views: Count = 12
    """Photographs to learn from."""
    held_out: Count = 3
    width: Count = 96
    """Of a photograph, pixels."""
    height: Count = 72
    splats: Annotated[int, Field(ge=10)] = 2000
    """Splats of the true scene, whose centres, moved a little, are the points to start from."""


class Motorcycle(Settings):
    """The Middlebury stereo pair in scikit-image: learns from the left photograph, holds out the right one."""

    source: Literal["motorcycle"] = "motorcycle"
    downscale: Count = 4
    """Whole factor that the photographs (741 x 500) are reduced by."""


class Colmap(Settings):
    """A folder with `images` and a COLMAP model, binary or text, in `sparse/0`, `sparse` or the folder itself."""

    source: Literal["colmap"] = "colmap"
    folder: DataPath
    downscale: Count = 1
    hold_out: Annotated[int, Field(ge=0)] = 8
    """Every so many'th photograph is held out, from the first; 0 holds out none."""


class Transforms(Settings):
    """A folder with `transforms.json` and a point cloud, as NeRF's tools write them."""

    source: Literal["transforms"] = "transforms"
    folder: DataPath
    downscale: Count = 1
    hold_out: Annotated[int, Field(ge=0)] = 8
    """Every so many'th photograph is held out, from the first; 0 holds out none."""


SceneSource = Annotated[Synthetic | Motorcycle | Colmap | Transforms, Field(discriminator="source")]


class RateSettings(Settings):
    """Adam's step sizes of 3DGS."""

    positions: Rate = 1.6e-4
    """At the first step, in extents of the scene."""
    positions_end: Rate = 1.6e-6
    """At the last step of the run; exponential in between."""
    colors: Rate = 2.5e-3
    harmonics: Rate = 1.25e-4
    opacities: Rate = 0.05
    scales: Rate = 5e-3
    rotations: Rate = 1e-3


class DensitySettings(Settings):
    """Densification and pruning at the ends of rounds, of one client. Off by default, as in the paper's large runs."""

    every: Annotated[int, Field(ge=0)] = 0
    """Rounds between two densifications; 0 is never."""
    until: Count = 1000
    """The last round with one."""
    slope: Rate = 2e-4
    """Mean norm of the gradient at a splat's centre above which it is cloned or split."""
    size: Rate = 0.01
    """Largest scale that is cloned instead of split, in extents of the scene."""
    opacity: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.005
    """Less opaque splats are removed."""
    room: Annotated[int, Field(ge=0)] = 0
    """Free rows of the model at the start, for more splats."""


class Config(PluginSettings):
    """Gaussian splatting of one scene, cut into boxes that sub-models own."""

    name: str = "retinags"
    data: SceneSource = Synthetic()
    """The scene; its `source` selects the kind."""
    splats: Count = 2000
    """Most splats at the start, drawn from the scene's points by the seed."""
    parts: Count = 1
    """K, boxes and their sub-models; 1 is plain splatting."""
    helpers: bool = True
    """Every sub-model runs in a helper process; false runs all in the client's, one after the other."""
    cpus: Annotated[float, Field(gt=0.0)] = 0.25
    """Cores that a sub-model asks for where the runtime places helpers."""
    degree: Annotated[int, Field(ge=0, le=3)] = 3
    """Of the spherical harmonics."""
    background: tuple[Unit, Unit, Unit] = (0.0, 0.0, 0.0)
    """Red, green and blue behind all splats."""
    dissimilarity: Unit = 0.2
    """d of the loss (1 - d) L1 + d (1 - SSIM)."""
    steps: Count = 30
    """Optimiser steps of a client in a round, one photograph each."""
    rates: RateSettings = RateSettings()
    density: DensitySettings = DensitySettings()
    views: Literal["interleaved", "sectors"] = "interleaved"
    """Photographs of a client: every so many'th, or neighbouring ones."""
    keep_moments: bool = True
    """A client continues with Adam's moments of its last round; false starts from zero."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the sub-models compute."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.parts > self.splats:
            raise ConfigError(f"workload.parts: {self.parts} boxes are more than the {self.splats} splats (splats)")
        if self.density.every and not self.keep_moments:
            raise ConfigError("workload.keep_moments: densification needs the moments; set it to true, or every to 0")
        return self

    def rounds_needed_by(self) -> str:
        return "workload.rates.positions_end"
