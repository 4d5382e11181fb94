"""Which network: settings, with no heavy import."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.core.config import Settings


class ModelSettings(Settings):
    """The network. Its input follows the data's shape, its output the number of classes."""

    name: Literal[
        "mlp",
        "cnn",
        "strided",
        "resnet8",
        "resnet20",
        "preact_resnet8",
        "preact_resnet18",
        "wrn16_2",
        "wrn34_10",
    ] = "cnn"
    """`mlp`: dense layers; `cnn`: two 5 x 5 convolutions; `strided`: two 3 x 3 convolutions with stride 2, cheapest;
    `resnet8`, `resnet20`: He et al. 2016, section 4.2; `preact_resnet8`, `preact_resnet18`: He et al. 2016, "Identity
    Mappings"; `wrn16_2`, `wrn34_10`: wide ResNets of Zagoruyko and Komodakis 2016."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Widths of the hidden layers of `mlp`."""
    norm: Literal["auto", "none", "batch", "group"] = "auto"
    """Normalisation. `batch`: its statistics travel and are averaged; `group` has none. `auto` takes `none` for `mlp`
    and `cnn`, `group` for `resnet8` and `resnet20`, `batch` for the others."""
    width: Annotated[float, Field(gt=0.0, le=16.0)] = 1.0
    """Factor on the channels of all convolutional networks: 0.25 makes `preact_resnet18` train on a laptop."""
