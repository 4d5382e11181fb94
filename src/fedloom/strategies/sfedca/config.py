"""Settings of SFedCA. What the abstract leaves open is a setting; the defaults are ours."""

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
    """How m of d are chosen; see the selection `firing_credit`, whose rules these are."""
    norm: Norm = "l1"
    """How the change of firing rates becomes one credit."""
    measurement: Literal["passes", "training"] = "passes"
    """`passes`: rates of two evaluation passes; `training`: those the first and last epoch saw, cheaper and biased."""
    layers: Literal["output", "all"] = "output"
    """Whose rates count: the output layer's, or those of all spiking layers."""
    shortlist: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    """Highest credits per place that `shortlist-balance` balances among."""
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.1
    """Temperature of `softmax`, in units of credit."""
    exploration: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the m places drawn uniformly from the candidates the rule left."""
