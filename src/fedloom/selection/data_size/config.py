"""Settings of selection by data size: none."""

from fedloom.core.config import PluginSettings


class Config(PluginSettings):
    """Selection proportional to the number of examples, without replacement."""

    name: str = "data_size"

    def needs_of_clients(self) -> frozenset[str]:
        return frozenset({"sizes"})
