"""Settings of Oort. The defaults are those of the public code, but for the speed term, which is off."""

from typing import Annotated

from pydantic import Field

from fedloom.core.config import PluginSettings

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(PluginSettings):
    """Oort's training selector."""

    name: str = "oort"
    exploration: Fraction = 0.9
    """Fraction of the cohort for clients never seen; epsilon, before its first decay."""
    exploration_decay: Fraction = 0.95
    """Factor of epsilon after each round."""
    exploration_min: Fraction = 0.2
    """Floor of epsilon."""
    clip_quantile: Fraction = 0.98
    """Utilities above this quantile are clipped to it."""
    cut_off: Fraction = 0.7
    """Clients whose score is at least this fraction of the last place's score take part in the draw."""
    exploration_window: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 5.0
    """Number of largest unseen clients per place to draw from."""
    preferred_duration_percentile: Annotated[float, Field(ge=0.0, le=100.0)] = 100.0
    """Clients slower than this percentile of the durations seen are penalised. 100 penalises none; less makes
    the choice depend on the clock, and a repeated run may differ."""
    slowness_penalty: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 2.0
    """Exponent of (preferred duration / duration), for slower clients; alpha."""
