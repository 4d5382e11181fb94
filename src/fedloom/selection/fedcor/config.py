"""Settings of FedCor. The defaults are those of the published commands for Fashion-MNIST."""

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """FedCor: correlation-based active selection."""

    name: str = "fedcor"
    warm_up: Annotated[int, Field(ge=1)] = 16
    """First rounds, with uniform cohorts and an evaluation of all clients each. The published `--warmup=15` counts
    from 0 and includes the last."""
    refit_every: Annotated[int, Field(ge=2)] = 10
    """After the warm-up, every N rounds one cohort is uniform and its loss changes refit the covariance."""
    history: Annotated[int, Field(ge=0)] = 100
    """Loss changes of a round are used until the newest are more than this many rounds newer."""
    forgetting: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Weight of loss changes relative to those of one round later; gamma."""
    update_mean: bool = True
    """Fit the covariance around the weighted mean of each client's loss changes; false takes a mean of 0."""
    discount: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Factor of a client's alpha each time it is chosen, until the next refit; beta."""
    dimension: Annotated[int, Field(ge=1)] = 15
    """Rank of the covariance besides its noise."""
    noise: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.01
    """Standard deviation of the loss changes' noise, in units of loss; sigma_n."""
