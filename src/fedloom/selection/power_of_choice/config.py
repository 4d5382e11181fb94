"""Settings of Power-of-Choice: how many candidates, drawn how."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """Power-of-Choice."""

    name: str = "power_of_choice"
    oversampling: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    """Candidates for each place in the cohort, d / m, if `candidates` is not set; rounded up, at most all N."""
    candidate_draw: Literal["examples", "uniform"] = "examples"
    """Candidates proportional to their number of examples (as published), or uniformly (if sizes are unknown)."""

    def needs_of_clients(self) -> frozenset[str]:
        return frozenset({"sizes"} if self.candidate_draw == "examples" else ())
