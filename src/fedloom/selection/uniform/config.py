"""Settings of uniform selection: none."""

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Uniform selection without replacement."""

    name: str = "uniform"
