"""Settings of optimal client sampling: how many candidates."""

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """Optimal client sampling."""

    name: str = "optimal_sampling"
