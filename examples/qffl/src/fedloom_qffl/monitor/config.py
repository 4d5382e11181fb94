"""Settings of the monitor."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Fairness over clients."""

    name: str = "qffl"
    clients: Annotated[int, Field(ge=1)] | None = None
    """Clients watched in an evaluated round, the first ones; None watches all."""
