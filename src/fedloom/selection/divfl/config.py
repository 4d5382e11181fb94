"""Settings of DivFL: how many candidates, and how their updates are compared."""

from typing import Annotated

from pydantic import Field

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """DivFL: diverse clients by facility location."""

    name: str = "divfl"
    sketch: Annotated[int, Field(ge=0)] = 256
    """Number of floats that describe a candidate's update; 0 sends every parameter, and distances are exact."""
