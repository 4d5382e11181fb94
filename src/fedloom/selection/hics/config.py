"""Settings of HiCS-FL. The defaults are those of the released configurations for Fashion-MNIST."""

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.core.setting_types import PlainWord


class Config(PluginSettings):
    """HiCS-FL: heterogeneity-guided client sampling."""

    name: str = "hics"
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.001
    """Temperature of the softmax whose entropy estimates a client's balance, T; in units of a weight's change in local
    training, so it goes with the clients' step size."""
    entropy_weight: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 10.0
    """Weight of the difference of entropies (nats) relative to the angle (radians) between two clients; lambda."""
    preference: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 4.0
    """Preference for clusters of balanced clients in the first round; gamma. It falls linearly to 0 over `horizon`."""
    horizon: Annotated[int, Field(ge=1)] = 200
    """Rounds over which the preference falls to 0: set it to the run's."""
    clusters: Annotated[int, Field(ge=1)] | None = None
    """Number of clusters, M; None takes the cohort's size."""
    most_variance: Annotated[float, Field(ge=0.0)] = 0.1
    """Where the entropies of all clients have at least this variance (nats squared), clusters of equal weight are
    sampled, one client of each, and balance is not preferred."""
    refresh: bool = True
    """Replace a client's change each time it trains; false uses its first, as the released code does on partitions
    mixed of several concentrations."""
    array: PlainWord | None = None
    """Name of the output layer's weights, classes first; None takes the model's last array with two or more axes."""
