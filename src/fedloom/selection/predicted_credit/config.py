"""Settings of selection by predicted credit, a method of our own."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """Candidates judged by what training them is likely to change, without training them."""

    name: str = "predicted_credit"
    credit: Literal["error", "change"] = "error"
    """What a client reports. `error`: its labels' shares minus what the global model predicts there, one forward pass;
    works with any classification. `change`: how its training changed its output firing rates, as `firing_credit`
    measures it; spiking workloads only, and nothing can be previewed."""
    rule: Literal["cover", "balance-all", "shortlist-balance"] = "cover"
    """`cover`: greedily those with large gains in many classes. `balance-all`: those whose gains are jointly most
    uniform, however small. `shortlist-balance`: the same among those of the largest gains."""
    shortlist: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    """Largest gains per place that `shortlist-balance` balances among; rounded up, at most all candidates."""
    candidate_draw: Literal["stalest", "uniform"] = "stalest"
    """Candidates are those selected longest ago, ties in random order; or any, uniformly. They cost nothing
    but memory: only chosen clients are contacted."""
    preview: Annotated[int, Field(ge=0)] = 0
    """Limit of candidates of unknown gain that get the model for a forward pass before the choice, in each round. With
    0 unknown candidates are chosen first, and so become known."""
    memory: Annotated[int, Field(ge=0)] | None = None
    """Rounds after which a client's report is forgotten; 0 stores none, None stores it until the next report."""
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Factor on a remembered gain for each round of its age; dimensionless. 1 weighs old reports like new ones."""

    def needs_of_clients(self) -> frozenset[str]:
        return frozenset({"label_counts" if self.credit == "error" else "firing_rates"})

    @classmethod
    def measured_facts(cls) -> frozenset[str]:
        return frozenset({"label_counts", "firing_rates"})
