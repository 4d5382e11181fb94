"""Settings of forgetting: whom, and by which method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.core.config import PluginSettings

Method = Literal["noisy_labels", "gradient_ascent", "calibrate"]


class Config(PluginSettings):
    """Rounds that make a global model forget one client. `fedloom forget` sets all of it."""

    name: str = "forgetting"
    method: Method
    """`noisy_labels`: the client trains on random classes, the others on a share of their examples. `gradient_ascent`:
    the client maximises its loss within a ball. `calibrate`: the others' stored updates give new ones their lengths."""
    client: Annotated[int, Field(ge=0)]
    """The client to be forgotten."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Of `noisy_labels`: the share of its examples that each other client trains on."""
    part: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Of `gradient_ascent`: the client's part of the model, p_k, its examples over those of all clients."""
    radius_fraction: Annotated[float, Field(gt=0.0)] = 1 / 3
    """Of `gradient_ascent`: the ball's radius, as a fraction of the distance between its centre and the initial
    model."""
