"""Settings of selection by update norm: how many candidates."""

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """Top-m by update norm among uniform candidates."""

    name: str = "update_norm"
