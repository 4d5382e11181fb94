"""Settings of selection by spike activity."""

from typing import Literal

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """Coverage of spike activity."""

    name: str = "spike_activity"
    resolution: Literal["neurons", "layers"] = "neurons"
    """Content of a candidate's report: the mean rate of every neuron, compared layer by layer, or of every layer."""

    def needs_of_clients(self) -> frozenset[str]:
        return frozenset({"firing_rates"})

    @classmethod
    def measured_facts(cls) -> frozenset[str]:
        return frozenset({"firing_rates"})
