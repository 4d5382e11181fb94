"""Settings of the monitor of samples."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Fréchet and kernel distances, coverage, memorisation and speed of every generative member. Needs `generative`."""

    name: str = "generative"
    clients: Annotated[int, Field(ge=1)] = 20
    """Clients that report in an evaluated round, drawn anew; at most all."""
    samples: Annotated[int, Field(ge=2)] = 256
    """Samples that each of them makes of each member."""
    pictures: Annotated[int, Field(ge=0)] = 64
    """Samples of the first client that are shown in the report; 0 shows none."""
