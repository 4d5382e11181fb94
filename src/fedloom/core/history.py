"""Records of a run: rounds and summary, as pydantic models written to JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    aggregated and broadcasts shared.
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
    """Duration of a round's parts; wall-clock seconds unless stated otherwise."""

    total_s: float = 0.0
    """Start of the round to its end, evaluation included."""
    training_s: float = 0.0
    """Training and other client work, summed over agents."""
    waiting_s: float = 0.0
    """Server: time waiting for partial sums; without the evaluation's."""
    aggregation_s: float = 0.0
    """Server: aggregation of partial sums and the strategy's `finish`."""
    evaluation_s: float = 0.0
    """Evaluation of the global model, start to end."""
    checkpoint_s: float = 0.0
    """Server: time the round waited for the previous checkpoint."""


class NodeShare(_Frozen):
    """One agent's part in a round."""

    jobs: int = 0
    busy_s: float = 0.0
    wire_bytes_down: int = 0
    wire_bytes_up: int = 0


class RoundRecord(_Frozen):
    """One line of `rounds.jsonl`."""

    round: int
    """Counts from 1."""
    cohort: list[int]
    """Clients sampled for the round, in the order their updates are aggregated."""
    candidates: list[int] = []
    """Clients measured before the cohort was chosen among them; empty if the selection needs no measurement."""
    probe: dict[str, JsonObject] = {}
    """Reports of trained candidates about themselves, such as their credit, by client."""
    num_examples: int
    """Examples of the aggregated updates."""
    local_trainings: int = 0
    """Clients that trained in this round, including candidates that were not chosen."""
    metrics: dict[str, Measured]
    """Means of the clients' training metrics, such as `loss`."""
    evaluation: dict[str, Measured] | None = None
    """Means over the held-out data, such as `loss` and `accuracy`; None if the round was not evaluated."""
    traffic: Traffic
    timing: Timing
    client_seconds: dict[str, float] = {}
    """Wall-clock seconds of each client's work, by client."""
    failures: list[ClientFailure] = []
    unneeded: list[int] = []
    """Extra clients whose updates had not arrived when the round closed."""
    refusals: dict[str, str] = {}
    """Why nodes rejected work or failed at it, by node."""
    stale: int = 0
    """Results that arrived after their round had closed; acknowledged, not aggregated."""
    duplicates: int = 0
    """Duplicate results, already aggregated."""
    reassigned: int = 0
    """Groups reassigned because their agent disconnected."""
    restored: int = 0
    """Groups whose results had been stored before the server restarted."""
    nodes: dict[str, NodeShare] = {}
    info: JsonObject = {}
    """The strategy's metrics of this round."""
    monitor: JsonObject = {}
    """The monitor's metrics; empty without a monitor or without reports."""
    sections: dict[str, JsonObject] = {}
    """One named section for each other feature with data about the round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportLine:
    """A client's report as a selection saw it: `metrics` are (sum, weight) by name, `info` is the measure's report."""

    client: int
    num_examples: int
    seconds: float
    num_trained: int
    metrics: dict[str, tuple[Measured, Measured]] = field(default_factory=dict)
    info: JsonObject = field(default_factory=dict)


class Choice(_Frozen):
    """One line of `choices.jsonl`: the selection's input in a round, and its choice."""

    round: int
    """Counts from 1."""
    cohort: list[int]
    """Clients the selection chose, in order."""
    probed: list[ReportLine] = []
    """Reports of candidates."""
    trained: list[ReportLine] = []
    """Reports of the clients that trained."""
    missed: list[int] = []
    """Clients that were sampled and whose update is missing."""
    population: int | None = None
    """Clients there were; None in logs of earlier versions, where `clients` of the experiment is."""


class SiteLine(_Frozen):
    """A site as it described itself when it became a client."""

    client: int
    """Its number, for good."""
    name: str
    member: str
    """Id of the member; a later member of its name is another client."""
    size: int | None = None
    """Training examples; None if the site does not report them."""
    label_counts: list[int] | None = None
    """Examples per class; None if the site does not report them, or there are no classes."""
    data: JsonObject = {}
    """Its report about its data."""


class RosterLine(_Frozen):
    """One line of `rosters.jsonl`: which sites are clients in a round, if that is not as in the round before."""

    round: int
    """The first round that this holds for."""
    joined: list[SiteLine] = []
    """Sites that have become clients, numbered on from those before."""
    online: list[int]
    """Clients that are connected when the round begins; the others are not sampled, or missing."""
    settings: list[str] = []
    """What the sites have agreed on from then on, as `KEY=VALUE` settings of the experiment."""


class BestRound(_Frozen):
    """The evaluated round that the final model is of, where the experiment has `best`."""

    metric: str
    """What was compared."""
    value: Measured
    """Its value in that round."""
    round: int
    """Counts from 1."""
    stopped_early: bool = False
    """Whether the run ended before its last round for lack of a gain."""


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
    """The means of the last evaluation, or of the best one where the experiment has `best`; the last round's training
    metrics if nothing was evaluated."""
    best: BestRound | None = None
    """The round that the final model is of; None where it is the last one."""
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
    """Missing updates over all rounds."""
    data: JsonObject = {}
    """Numbers of examples and classes, what was left out of the data, and remarks, as the workload states them."""
    cross_sites: JsonObject = {}
    """Models of sites, and the global one, on the validation data of every site, after the last round: `sites` (rows),
    `models` (columns), by metric their values, and `reasons`, by model and by site, of those that are `n/a`. Empty
    without sites."""
    error: str | None = None
    environment: dict[str, str] = {}
    """Versions and machine of the run."""
