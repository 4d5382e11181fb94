"""Settings of a hosted Flower strategy: which class, its options, what wraps it."""

from typing import Annotated

from pydantic import ConfigDict, Field

from fedloom.core.config import PluginSettings, Settings
from fedloom.core.setting_types import ClassName, Known, SettingKind

WRAPPERS = frozenset(
    {"server_fixed_clipping", "server_adaptive_clipping", "client_fixed_clipping", "client_adaptive_clipping"}
)
"""Names of Flower's wrappers."""


class WrapperSettings(Settings):
    """A strategy around the strategy: Flower's way to add differential privacy."""

    name: Annotated[ClassName, Known(WRAPPERS)]
    """`server_fixed_clipping`, `server_adaptive_clipping`, `client_fixed_clipping`, `client_adaptive_clipping`, or a
    class, as for `class`. Its first argument is the wrapped strategy."""
    options: Annotated[dict[str, object], SettingKind.PLAIN] = Field(default_factory=dict)
    """Keywords of the wrapper's constructor. `num_sampled_clients` is the cohort's size by default."""


class Config(PluginSettings):
    """A Flower `Strategy` object. Sampling and quorum are settings of the run, not of the object."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str = "flower"
    class_: ClassName = Field(default="FedAvg", alias="class")
    """Written `class`: a name in `flwr.serverapp.strategy` (`Krum`, `FedMedian`, …), or `module:Class`."""
    options: Annotated[dict[str, object], SettingKind.PLAIN] = Field(default_factory=dict)
    """Keywords of the constructor. If it expects a function (`…_fn`, `…_rule`), give `module:function`."""
    wrapper: WrapperSettings | None = None
    """A wrapper, such as one for differential privacy; None disables it."""
    train_config: Annotated[dict[str, object], SettingKind.FREE] = Field(default_factory=dict)
    """Values in every client's training message (or knobs), as `Strategy.start(train_config=…)` sends them."""
    evaluate_config: Annotated[dict[str, object], SettingKind.FREE] = Field(default_factory=dict)
    """The same for evaluation messages."""
    evaluate_on_clients: bool | None = None
    """Whether clients evaluate each new model on their own data. None: if the workload is a Flower app."""
