"""Settings of FedCor."""

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """FedCor: correlation-based active selection."""

    name: str = "fedcor"
    warm_up: Annotated[int, Field(ge=1)] = 15
    """First rounds, with uniform cohorts and an evaluation of all clients each."""
    refit_every: Annotated[int, Field(ge=2)] = 10
    """After the warm-up, every N rounds one cohort is uniform and its loss changes refit the covariance."""
    history: Annotated[int, Field(ge=1)] = 20
    """Newest rounds of loss changes the covariance is fitted to; older ones are forgotten."""
    forgetting: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Weight of a round of loss changes relative to the next newer one; gamma."""
    discount: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Factor of a client's alpha each time it is chosen, until the next refit; beta."""
    dimension: Annotated[int, Field(ge=1)] = 15
    """Rank of the covariance besides its noise."""
    noise: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.01
    """Standard deviation of the loss changes' noise, in units of loss; sigma_n."""
