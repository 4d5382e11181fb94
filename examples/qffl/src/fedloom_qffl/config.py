"""Settings of q-FedAvg."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """q-FedAvg. The names are the paper's."""

    name: str = "qffl"
    q: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    """Fairness q: 0 is the plain mean of the clients' models, larger values raise the weight of large losses."""
    lipschitz: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 10.0
    """L, the inverse of the learning rate that q = 0 is tuned to. It cancels where q is 0."""
