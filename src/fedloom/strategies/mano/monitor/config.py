"""Settings of the label-free accuracy monitor."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.core.errors import ConfigError


class Config(PluginSettings):
    """Estimated accuracy of the global model on clients' data, from a few sums each client sends."""

    name: str = "mano"
    data: Literal["held_out", "own"] = "held_out"
    """`held_out`: the test data is split into parts that represent clients' new examples; `own`: clients' training
    data, on which a model is overconfident."""
    clients: Annotated[int, Field(ge=2)] = 20
    """Clients sampled in an evaluated round: the parts of `held_out`, or for `own` this many (at most all) drawn
    anew."""
    anchors: Annotated[int, Field(ge=0)] = 2
    """Of them, those whose labels are known: they determine the line from score to accuracy. Without any there are
    scores and no estimate."""
    memory: Annotated[int, Field(ge=1)] = 10
    """Evaluated rounds whose anchors the line's slope is fitted to."""
    branch: Literal["softmax", "taylor", "fixed", "per_set"] = "softmax"
    """Normalisation of logits. Always the one named; or by the criterion, `fixed`: of the first evaluated round,
    and unchanged; `per_set`: of each round, whose scores then do not compare. Both are sent."""
    eta: float = 5.0
    """Threshold on the criterion: at or below it logits are normalised by the truncated exponential."""
    criterion: Literal["ce", "kl"] = "ce"
    """`ce`: the printed criterion, never below ln K; `kl`: minus ln K."""
    balance_floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Warn where the predictions' balance over classes (entropy over ln K) is below: a collapsed model is confident,
    too."""
    alarm_drop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.15
    """Warn of a client whose score falls by this share of the score's range below its own mean of earlier rounds."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.anchors >= self.clients:
            raise ConfigError(
                f"monitor.anchors: {self.anchors} of {self.clients} clients leave none to estimate; lower it, or "
                "raise monitor.clients"
            )
        return self
