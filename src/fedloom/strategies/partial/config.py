"""Settings of the averaging of partial models: none."""

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Averaging of partial models. Which arrays a client trains is the workload's setting."""

    name: str = "partial"
