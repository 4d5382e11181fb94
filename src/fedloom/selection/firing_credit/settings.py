"""Settings shared by the selections that keep m of d candidates by credit and gains."""

from typing import Annotated

from pydantic import Field

from fedloom.selection._choosing.candidates import CandidateSettings
from fedloom.selection.firing_credit.rules import Rule


class RuleSettings(CandidateSettings):
    """How m of d are chosen from credits and gains."""

    rule: Rule = "shortlist-balance"
    """`shortlist-balance`: of the highest credits those whose gains are jointly most uniform. `topm`: the highest (the
    literal reading). `balance-all`: uniform gains without credits. `cover`: large gains in many classes, without
    credits. `softmax`: drawn by credit. `lowest`: the lowest, a negative control."""
    shortlist: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    """Highest credits per place that `shortlist-balance` balances among; rounded up, at most all candidates."""
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.1
    """Temperature of `softmax`, in units of credit."""
    exploration: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the cohort drawn uniformly from the candidates the rule left; epsilon, rounded to whole places."""
