"""Settings of a Flower app's client half."""

from typing import Annotated, TypeAlias

from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.core.setting_types import AppFolder, CodeRef, FreeText, PlainWord, SettingKind

NodeConfig: TypeAlias = dict[str, bool | int | float | FreeText]
"""Values of one node."""


class Config(PluginSettings):
    """A Flower `ClientApp` and its configuration. Its data and model are its own."""

    name: str = "flower"
    app: AppFolder
    """Folder of the app. A node finds its own copy by the folder's name and SHA-256, where its policy lists it."""
    clientapp: CodeRef
    """The component, `module:object`, as `[tool.flwr.app.components]` has it."""
    run_config: dict[str, bool | int | float | FreeText] = Field(default_factory=dict)
    """`context.run_config`."""
    node_config: Annotated[NodeConfig | list[NodeConfig], SettingKind.FREE] = Field(default_factory=dict)
    """`context.node_config`, besides `partition-id` (the client's number) and `num-partitions`: a table, or a list with
    one for each client of a simulation. A joined node's own values (`fedloom join --node-config`) come over these; with
    `clients = "nodes"` it has no others."""
    initial_arrays: CodeRef | None = None
    """`module:callable` that creates the initial model (a torch module, a state dict, arrays, or an ArrayRecord), for
    strategies other than the app's own ServerApp; None if the ServerApp sends the first model."""
    weighted_by: PlainWord = "num-examples"
    """Name of the metric with a reply's number of examples."""
