"""Settings of Fed-CBS."""

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Fed-CBS: class-balanced sampling."""

    name: str = "fed_cbs"
    first_exponent: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Exponent of the imbalance for the first place; beta_1."""
    last_exponent: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 10.0
    """Exponent of the imbalance for the last place; in between it grows evenly. beta_m."""
    exploration: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 10.0
    """Factor of the term that favours clients seldom chosen, for the first place; lambda."""

    def needs_of_clients(self) -> frozenset[str]:
        return frozenset({"label_counts"})
