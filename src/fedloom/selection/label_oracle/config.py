"""Settings of the label oracle."""

from typing import Literal

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """The label oracle."""

    name: str = "label_oracle"
    objective: Literal["kl", "qcid"] = "kl"
    """Measure of the pool's distance from uniform: Kullback-Leibler divergence, or quadratic class imbalance."""

    def needs_of_clients(self) -> frozenset[str]:
        return frozenset({"label_counts"})
