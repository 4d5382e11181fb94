"""Settings of heterogeneity-guided clustered sampling."""

from typing import Annotated

from pydantic import Field

from fedloom.core.setting_types import PlainWord
from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """HiCS-style clustered sampling."""

    name: str = "hics"
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.25
    """Temperature of the softmax whose entropy estimates a candidate's balance; dimensionless, changes are scaled by
    the round's largest."""
    entropy_weight: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    """Weight of the difference of entropies (nats) next to the angle (radians) between two candidates; lambda."""
    preference: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 4.0
    """Preference for clusters of balanced candidates: weight exp(preference * mean entropy)."""
    array: PlainWord | None = None
    """Name of the output layer's array; None takes the model's last one with an axis."""
