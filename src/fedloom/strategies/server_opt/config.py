"""Settings of the server optimisers: which one, its step size, its decay rates."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedloom.core.config import PluginSettings

_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "momentum": {"learning_rate": 1.0, "momentum": 0.9},
    "adam": {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "yogi": {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "adagrad": {"learning_rate": 0.1, "beta1": 0.0, "tau": 1e-3},
}
"""The settings of each optimiser, with their defaults."""

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Config(PluginSettings):
    """A server optimiser. A setting the chosen optimiser does not read is an error, never ignored."""

    name: str = "server_opt"
    optimizer: Literal["momentum", "adam", "yogi", "adagrad"] = "adam"
    """`momentum` is FedAvgM, `adam` FedAdam, `yogi` FedYogi, `adagrad` FedAdagrad."""
    learning_rate: Positive | None = None
    """Server step size eta (dimensionless). None takes 1.0 for `momentum` and 0.1 for the others."""
    momentum: Decay | None = None
    """`momentum` only: decay of the velocity, beta. None takes 0.9."""
    beta1: Decay | None = None
    """Decay of the first moment. None takes 0.9, and 0 for `adagrad`."""
    beta2: Decay | None = None
    """`adam` and `yogi`: decay of the second moment. None takes 0.99."""
    tau: Positive | None = None
    """All but `momentum`: degree of adaptivity, in the unit of a model weight; v starts at tau². None takes 1e-3."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, values: object) -> object:
        """Fill in the chosen optimiser's defaults; refuse settings it does not read."""
        if not isinstance(values, Mapping):
            return values
        optimizer = values.get("optimizer", "adam")
        if not isinstance(optimizer, str) or optimizer not in _DEFAULTS:
            return values  # the field's own check reports the error
        reads = _DEFAULTS[optimizer]
        tunable = {key for defaults in _DEFAULTS.values() for key in defaults}
        idle = sorted(key for key in tunable - reads.keys() if values.get(key) is not None)
        if idle:
            raise ValueError(
                f"{', '.join(idle)}: no effect with optimizer {optimizer!r}, which reads {', '.join(reads)}; remove it"
            )
        given = {key: value for key, value in values.items() if value is not None}
        return {**reads, **given}
