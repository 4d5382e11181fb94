"""Settings of selection by firing credit. What the abstract leaves open is a setting, with our default."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from fedloom.core.errors import ConfigError
from fedloom.core.records import Info
from fedloom.selection._choosing.candidates import CandidateSettings
from fedloom.selection.firing_credit.rules import Norm, Rule


class Config(CandidateSettings):
    """SFedCA's credit as a selection. A reconstruction from the abstract."""

    name: str = "firing_credit"
    rule: Rule = "shortlist-balance"
    """`shortlist-balance`: of the highest credits those whose gains are jointly most uniform. `topm`: the highest (the
    literal reading). `balance-all`: uniform gains without credits. `cover`: large gains in many classes, without
    credits. `softmax`: drawn by credit. `lowest`: the lowest, a negative control."""
    norm: Norm = "l1"
    """How the change of rates becomes a credit: `l1` or `l2` of the mean change, `per_sample` mean of the samples' L1,
    `signed` sum (changes cancel), `positive` part only."""
    measurement: Literal["passes", "training"] = "passes"
    """Source of the rates. `passes`: two evaluation passes over the client's data, before and after training.
    `training`: rates observed during the first and the last epoch; cheaper, and biased towards less change."""
    layers: Literal["output", "all"] = "output"
    """Rates of the output layer, or the mean credit of all spiking layers, each scaled to the output's width."""
    candidate_draw: Literal["uniform", "examples", "cyclic"] = "uniform"
    """Candidates uniformly, proportional to their number of examples, or the next d in turn (in random order)."""
    shortlist: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    """Highest credits per place that `shortlist-balance` balances among; rounded up, at most all candidates."""
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.1
    """Temperature of `softmax`, in units of credit."""
    exploration: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Fraction of the cohort drawn uniformly from the remaining candidates; epsilon, rounded to whole places."""

    @pydantic.model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.measurement == "training" and self.norm == "per_sample":
            raise ConfigError(
                'norm: "per_sample" compares each example before and after training, which measurement = "training" '
                'does not provide. Set measurement = "passes", or another norm'
            )
        return self

    def knobs(self, *, gain: bool) -> Info:
        """Return the measure's knobs."""
        return {"norm": self.norm, "layers": self.layers, "measurement": self.measurement, "gain": gain}

    def needs_of_clients(self) -> frozenset[str]:
        return frozenset({"firing_rates", *(("sizes",) if self.candidate_draw == "examples" else ())})

    @classmethod
    def measured_facts(cls) -> frozenset[str]:
        return frozenset({"firing_rates"})
