"""Settings of selection by predicted credit. All of it is ours."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.selection._choosing.candidates import CandidateSettings


class Config(CandidateSettings):
    """Candidates judged by what training them is likely to change, without training them."""

    name: str = "predicted_credit"
    credit: Literal["error", "change"] = "error"
    """What a client tells. `error`: its labels' shares minus what the global model predicts there, one forward pass;
    works with any classification. `change`: how its own training changed its output firing rates, as `firing_credit`
    measures it; spiking workloads only, and nothing can be previewed."""
    rule: Literal["cover", "balance-all", "shortlist-balance"] = "cover"
    """`cover`: greedily those with much to gain in many classes. `balance-all`: those whose gains are jointly most
    uniform, however small. `shortlist-balance`: the same among those of the largest gains."""
    shortlist: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    """Largest gains per place that `shortlist-balance` balances among; rounded up, at most all candidates."""
    candidate_draw: Literal["stalest", "uniform"] = "stalest"
    """Candidates are those asked longest ago, in random order where that is equal; or any, uniformly. They cost nothing
    but memory: only the chosen are asked."""
    preview: Annotated[int, Field(ge=0)] = 0
    """Most candidates of unknown gain that are sent the model for a forward pass before the choice, in each round. With
    0 unknown candidates are chosen first, and so become known."""
    memory: Annotated[int, Field(ge=0)] | None = None
    """Rounds after which what a client told is forgotten; 0 keeps nothing, None keeps it until it tells again."""
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Factor on a remembered gain for each round of its age; dimensionless. 1 trusts old reports like new ones."""
