"""Settings of FedProx: the weight of the proximal term."""

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """FedProx. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "fedprox"
    mu: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.01
    """Weight of the proximal term, mu (dimensionless); 0 is federated averaging, bit for bit."""
