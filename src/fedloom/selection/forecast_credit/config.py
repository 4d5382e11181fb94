"""Settings of selection by forecast credit."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.errors import ConfigError
from fedloom.selection.firing_credit.rules import Rule
from fedloom.selection.firing_credit.settings import RuleSettings


class Config(RuleSettings):
    """Credit without training: one forward pass for each candidate. Ours; not in the paper."""

    name: str = "forecast_credit"
    norm: Literal["l1", "l2", "positive"] = "l1"
    """How a forecast becomes a credit: `l1` or `l2` of it, or its positive part only."""
    rule: Rule = "cover"
    """As in `firing_credit`. The default differs: forecasts are precise enough to choose by among all candidates."""
    remember_rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds a report stays good for. The d candidates are then the clients asked in this round, and clients drawn from
    those whose report is still good. 0 asks every candidate in every round."""
    asked: Annotated[int, Field(ge=1)] | None = None
    """Clients without a good report asked in each round, at most d. None asks d."""
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor on a remembered report's credit and gains for each round of its age."""

    @pydantic.model_validator(mode="after")
    def _only_with_memory(self) -> Self:
        if not self.remember_rounds and (self.asked is not None or self.decay != 1.0):
            raise ConfigError(
                f"selection.asked and selection.decay (asked = {self.asked}, decay = {self.decay}) need remembered "
                "reports, but remember_rounds = 0. Set remember_rounds, or leave them out"
            )
        return self
