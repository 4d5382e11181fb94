"""Which network: settings, with no heavy import."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError

Width = Annotated[int, Field(ge=1)]


class VitSettings(Settings):
    """The network `vit`: a small vision transformer. Its `query` and `value` are the usual targets of adapters."""

    patch: Width = 7
    """Side of a patch, pixels; the images' sides must be multiples of it."""
    width: Width = 128
    """Width of a token."""
    depth: Width = 2
    """Blocks."""
    heads: Width = 4
    """Heads of the attention; they must divide the width."""
    mlp: Width = 512
    """Width of the perceptron's hidden layer."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ConfigError(f"workload.model.vit.heads: {self.heads} heads do not divide a width of {self.width}")
        return self


class ModelSettings(Settings):
    """The network. Its input follows the data's shape, its output the number of classes."""

    name: Literal[
        "mlp",
        "cnn",
        "strided",
        "resnet8",
        "resnet20",
        "resnet18",
        "preact_resnet8",
        "preact_resnet18",
        "wrn16_2",
        "wrn34_10",
        "vit",
    ] = "cnn"
    """`mlp`: dense layers; `cnn`: two 5 x 5 convolutions; `strided`: two 3 x 3 convolutions with stride 2, cheapest;
    `resnet8`, `resnet20`: He et al. 2016, section 4.2; `resnet18`: theirs for ImageNet (table 1) with a 3 x 3
    convolution at the beginning and no pooling there, as usual for small images; `preact_resnet8`, `preact_resnet18`:
    He et al. 2016, "Identity Mappings"; `wrn16_2`, `wrn34_10`: wide ResNets of Zagoruyko and Komodakis 2016; `vit`: a
    vision transformer, see `vit`."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Widths of the hidden layers of `mlp`."""
    norm: Literal["auto", "none", "batch", "group"] = "auto"
    """Normalisation. `batch`: its statistics are sent and averaged; `group` has none. `auto` takes `none` for `mlp`
    and `cnn`, `group` for `resnet8` and `resnet20`, `batch` for the others."""
    width: Annotated[float, Field(gt=0.0, le=16.0)] = 1.0
    """Factor on the channels of all convolutional networks: with 0.25 `preact_resnet18` trains on a laptop."""
    vit: VitSettings = VitSettings()
    """Sizes of `vit`."""
