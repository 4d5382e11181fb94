"""Settings of active federated learning."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Active federated learning."""

    name: str = "afl"
    dropped_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.75
    """Fraction of the clients, those of lowest value, that are excluded from the weighted draw; alpha_1."""
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.01
    """Factor of the value in the exponent of a client's weight; alpha_2. 0 draws uniformly from those not dropped."""
    uniform_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Fraction of the cohort that is drawn uniformly from the remaining clients; alpha_3."""
    first_values: Literal["evaluate", "largest"] = "evaluate"
    """Clients without a value: all are evaluated before round 1, or they count as the largest value seen so far."""
