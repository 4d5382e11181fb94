"""Settings of selection by local loss: how many candidates."""

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """Top-m by local loss among uniform candidates."""

    name: str = "local_loss"
