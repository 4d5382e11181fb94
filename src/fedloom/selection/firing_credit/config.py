"""Settings of selection by firing credit. What the abstract leaves open is a setting; the defaults are ours."""

from typing import Literal

from fedloom.selection.firing_credit.rules import Norm
from fedloom.selection.firing_credit.settings import RuleSettings


class Config(RuleSettings):
    """SFedCA's credit as a selection. A reconstruction from the abstract."""

    name: str = "firing_credit"
    norm: Norm = "l1"
    """How the change of rates becomes a credit: `l1` or `l2` of the mean change, `per_sample` mean of the samples' L1,
    `signed` sum (changes cancel), `positive` part only."""
    layers: Literal["output", "all"] = "output"
    """Rates of the output layer, or the mean credit of all spiking layers, each scaled to the output's width."""
    candidate_draw: Literal["uniform", "examples", "cyclic"] = "uniform"
    """Candidates uniformly, proportional to their number of examples, or the next d in turn (in random order)."""
