"""Settings of federated averaging: none."""

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Federated averaging. Cohort, weighting and quorum are settings of the run, not of the strategy."""

    name: str = "fedavg"
