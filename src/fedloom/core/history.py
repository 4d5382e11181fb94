"""What a run leaves behind: round records and the summary, as pydantic models written to JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from fedloom.core.records import ClientFailure, JsonObject

Measured = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]
"""A number that may be NaN or infinite. JSON has neither: both are written as null, and null is read as NaN."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Traffic(_Frozen):
    """Array elements and bytes in each direction.

    `bytes_*` and `params_*` are the federation's cost: what every client of the cohort would read and send if it were
    alone on its device, counted from the frames it reads and makes. They depend on the experiment only.
    `wire_bytes_*` is what crossed (or would have crossed) between the server and its agents in this very run, groups
    folded and broadcasts shared.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    params_down: int = 0
    params_up: int = 0
    wire_bytes_down: int = 0
    wire_bytes_up: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        mine, theirs = self.model_dump(), other.model_dump()
        return Traffic(**{key: mine[key] + theirs[key] for key in mine})


class Timing(_Frozen):
    """Where a round's time went; wall-clock seconds unless said otherwise."""

    total_s: float = 0.0
    """Start of the round to its end, evaluation included."""
    training_s: float = 0.0
    """Summed over agents: time spent in clients' work."""
    waiting_s: float = 0.0
    """Server: time with nothing to fold."""
    aggregation_s: float = 0.0
    """Server: folding partial sums and finishing the strategy's step."""
    evaluation_s: float = 0.0
    """Evaluation of the global model, start to end."""
    checkpoint_s: float = 0.0
    """Server: time the round waited for the checkpoint before it."""


class NodeShare(_Frozen):
    """What one agent did in a round."""

    jobs: int = 0
    busy_s: float = 0.0
    wire_bytes_down: int = 0
    wire_bytes_up: int = 0


class RoundRecord(_Frozen):
    """One line of `rounds.jsonl`."""

    round: int
    """Counts from 1."""
    cohort: list[int]
    """Clients whose updates were asked for, in the order they are folded."""
    candidates: list[int] = []
    """Clients measured before the cohort was chosen among them; empty where the selection needs no measurement."""
    probe: dict[str, JsonObject] = {}
    """What trained candidates reported about themselves, such as their credit, by client."""
    num_examples: int
    """Examples the accepted updates were trained on."""
    local_trainings: int = 0
    """Clients that trained in this round, candidates that were not chosen included."""
    metrics: dict[str, Measured]
    """Means of what clients reported while training, such as `loss`."""
    evaluation: dict[str, Measured] | None = None
    """Means over the held-out data, such as `loss` and `accuracy`; None where the round was not evaluated."""
    traffic: Traffic
    timing: Timing
    client_seconds: dict[str, float] = {}
    """Wall-clock seconds of each client's work, by client."""
    failures: list[ClientFailure] = []
    unneeded: list[int] = []
    """Clients asked beyond the cohort that had not answered when the round closed."""
    refusals: dict[str, str] = {}
    """Why nodes would not or could not take part, by node."""
    stale: int = 0
    """Results that came after their round had closed; answered, not folded."""
    duplicates: int = 0
    """Results that had been folded already."""
    reassigned: int = 0
    """Groups given to another agent because theirs vanished."""
    restored: int = 0
    """Groups whose answers had come before the server was started again, and were kept."""
    nodes: dict[str, NodeShare] = {}
    info: JsonObject = {}
    """The strategy's own numbers for this round."""
    monitor: JsonObject = {}
    """The monitor's; empty where there is none or it asked for nothing."""
    sections: dict[str, JsonObject] = {}
    """One named section for each other feature that has something to say of the round."""


class Told(_Frozen):
    """One client's report as a selection saw it."""

    client: int
    num_examples: int
    seconds: float
    num_trained: int
    metrics: dict[str, tuple[Measured, Measured]] = {}
    """Sum and weight of each metric."""
    info: JsonObject = {}
    """What its measure told."""


class Choice(_Frozen):
    """One line of `choices.jsonl`: what the selection was told in a round, and what it chose."""

    round: int
    """Counts from 1."""
    cohort: list[int]
    """Clients the selection chose, in order."""
    probed: list[Told] = []
    """Reports of candidates, and of clients that kept their updates until they were asked for them."""
    collected: list[int] = []
    """Clients asked for the update they kept."""
    trained: list[Told] = []
    """Reports of the clients that trained."""
    missed: list[int] = []
    """Clients that were asked and did not answer."""


class RunSummary(_Frozen):
    """`summary.json`, and the object printed by `--json`."""

    run_id: str
    run_dir: str | None
    name: str
    status: str
    """`done`, `failed` or `interrupted`."""
    rounds: int
    """Rounds finished."""
    metrics: dict[str, Measured]
    """The last evaluation's means; the last round's training metrics where nothing was evaluated."""
    not_finite: tuple[str, ...] = ()
    """Metrics of the last evaluation that are NaN or infinite; `evaluation` where the last one is missing."""
    bytes_up: int
    bytes_down: int
    params_up: int
    params_down: int
    wire_bytes_up: int
    wire_bytes_down: int
    seconds: float
    """Wall-clock seconds of all sessions of the run together."""
    model_sha256: str | None
    """`core.records.arrays_sha256` of the final arrays."""
    num_parameters: int
    """Elements of the global model."""
    seed: int
    group_size: int
    runtime: str
    workers: int
    failures: int
    """Missing answers over all rounds."""
    error: str | None = None
    environment: dict[str, str] = {}
    """Versions and machine the run was made on."""
