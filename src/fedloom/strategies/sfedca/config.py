"""Settings of SFedCA. What the abstract leaves open is a setting, with our default."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.selection.firing_credit.rules import Norm, Rule


class Config(PluginSettings):
    """SFedCA: the round's cohort are the candidates (d), of which the best credited (m) are aggregated."""

    name: str = "sfedca"
    select: Annotated[int, Field(ge=1)] | None = None
    """Clients aggregated in each round, m, at most the cohort. None takes a quarter of the cohort, rounded up."""
    rule: Rule = "shortlist-balance"
    """Rule for choosing m of d; see the selection `firing_credit`, which shares these rules."""
    norm: Norm = "l1"
    """How the change of firing rates becomes one credit."""
    measurement: Literal["passes", "training"] = "passes"
    """`passes`: rates of two evaluation passes; `training`: those the first and last epoch saw, cheaper and biased."""
    layers: Literal["output", "all"] = "output"
    """Layers whose rates count: the output layer, or all spiking layers."""
    shortlist: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    """Highest credits per place that `shortlist-balance` balances among."""
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.1
    """Temperature of `softmax`, in units of credit."""
    exploration: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Fraction of the m places drawn uniformly from the remaining candidates."""
