"""The sections of an experiment that are not a plug-in's: rounds, nodes, evaluation, checkpoints, runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import pydantic
from pydantic import ConfigDict, Field

from fedloom.core.config.settings import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import SERVER_ONLY, FreeText, PlainWord

INCIDENTAL = ("name", "runtime", "checkpoint", "fleet")
"""Sections of an experiment that never change a result."""

NODE_STATE_ROUNDS = 4
"""Rounds of client state a node stores per client, newest first, if `round.state_home` is `node`."""


class RoundSettings(Settings):
    """Conduct of a round, for any strategy."""

    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of an update in a mean: its number of examples, or one. The only update of a round (a cohort of one) has
    weight one in either case, so that the mean is the update bit for bit."""
    quorum_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Fraction of the cohort whose updates must arrive. Below it the run fails and lists why each update is missing.
    If clients are sites, the default requires `min_sites` updates instead."""
    min_sites: Annotated[int, Field(ge=1)] | None = None
    """Sites that a round needs, if clients are sites: the run waits until this many are connected, and fails where
    fewer updates arrive. None takes 1."""
    deadline_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds after which each exchange of a round (training, probe, monitor) closes with the updates that have
    arrived, if they are a quorum. None waits for all."""
    oversample_fraction: Annotated[float, Field(ge=0.0)] = 0.0
    """Extra clients sampled, as a fraction of the cohort. The round closes once as many as the cohort have returned
    updates; which ones depends on their speed, so results are no longer bit-identical between runs."""
    reserve_fraction: Annotated[float, Field(ge=0.0)] = 0.0
    """Reserve clients, as a fraction of the cohort: one replaces each failed client."""
    group_size: Annotated[int, Field(ge=1)] | None = None
    """Clients trained and aggregated together. None takes ceil(cohort / 12). Changes the result bit for bit; the
    number of workers does not."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """How often a group is reassigned after the process working on it has died."""
    state_home: Literal["server", "node"] = "server"
    """Where the state of stateful clients is stored between rounds: on the server, or on the node that trained the
    client, which never sends it. `node` needs clients that always train on the same node, and `checkpoint.every` of at
    most 2: a node stores the states of each client's last 4 rounds, for a run that is resumed. Sites always store their
    own."""


class FleetSettings(Settings):
    """Which nodes of a standing server do a run. Means nothing in a simulation."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a label's value on the command line may look like a number

    labels: dict[str, FreeText] = Field(default_factory=dict)
    """Nodes with all these labels serve the run; empty for every node. Selects nodes, not clients, and the result
    depends on it only if clients are sites (`clients = "nodes"`), or nodes have data of their own."""
    min_nodes: Annotated[int, Field(ge=1), SERVER_ONLY] = 1
    """Nodes with these labels that must be connected before work is given out; until then the run waits."""


class EvaluationSettings(Settings):
    """Evaluation of the global model on held-out data."""

    every: Annotated[int, Field(ge=0)] = 1
    """Evaluate every N rounds and after the last. 0 disables."""
    parts: Annotated[int, Field(ge=1)] = 4
    """Parts the test set is split into, evaluated in parallel. Changes the last bits of the metrics."""
    deadline_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds after which an evaluation ends with the pieces that have arrived, if `round.quorum_fraction` of them
    have; else the round has no evaluation. None takes `round.deadline_s`."""
    fine_tune: Annotated[int, Field(ge=1)] | None = None
    """Where clients are sites, evaluate the global model on each also after this many local trainings on its data,
    each of as many epochs or steps as one of a round. None does not."""
    on_clients: bool = False
    """Also evaluate the global model on each virtual client's own data, in evaluated rounds: the record and the report
    then have each client's metrics, the worst client, the 10th percentile and the spread. Sites always do this."""


GOALS: Mapping[str, Literal["max", "min"]] = {
    "accuracy": "max",
    "f1": "max",
    "loss": "min",
    "mae": "min",
    "mse": "min",
    "perplexity": "min",
}
"""Which of two values is the better one, for metrics of these names."""


class BestSettings(Settings):
    """The final model is the one of the best evaluated round instead of the last one."""

    metric: PlainWord
    """Metric of the evaluation that is compared, such as `accuracy` or `loss`."""
    goal: Literal["max", "min"] | None = None
    """Which value is better. None takes `max` for `accuracy` and `f1`, `min` for `loss`, `mae`, `mse` and `perplexity`;
    other metrics need it."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Evaluations in a row without a gain after which the run ends early. None does all rounds."""
    min_gain: Annotated[float, Field(ge=0.0)] = 0.0
    """How much better than the best a value must be to count as a gain; in the metric's unit."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """Read `best = "accuracy"` as the metric's name."""
        return {"metric": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _has_goal(self) -> Self:
        if self.goal is None and self.metric not in GOALS:
            raise ConfigError(
                f"best.goal: required for the metric {self.metric!r}, but missing; expected 'max' or 'min', whichever "
                "is better"
            )
        return self

    @property
    def larger_is_better(self) -> bool:
        """Return whether the larger of two values is the better one."""
        return (self.goal or GOALS[self.metric]) == "max"


class CheckpointSettings(Settings):
    """Persistence of a run, for resuming after a failure."""

    every: Annotated[int, Field(ge=1)] = 1
    """Save every N rounds and after the last."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Number of newest checkpoints on disk."""
    client_updates: bool = False
    """Keep what each client changes in each round, in `updates/` of the run's folder: a model for each client and
    round. Methods of `fedloom forget` need it. Needs `round.group_size = 1`, so that updates arrive one by one."""
    answers: bool = True
    """On a standing server: write each result to disk before it is acknowledged, so that no client trains twice if the
    server is killed within a round. Needs space for one model per group until the next checkpoint."""


class RuntimeSettings(Settings):
    """Where clients run. Never changes a result, so it is not part of an experiment's identity."""

    name: Literal["ray", "process", "inline"] = "ray"
    """`ray` spawns the agents as Ray actors, `process` forks them here, `inline` runs them in the calling thread."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Number of agents; None takes one per core (of the Ray cluster, for `ray`) this process may use: CPU affinity and
    the limits of its control groups on CPU, memory (512 MB for each) and processes count."""
    ray_address: PlainWord | None = None
    """Address of a running Ray cluster (`auto`, or `HOST:PORT`). None: `RAY_ADDRESS` if it is set, otherwise Ray is
    started here."""
    cpus_per_worker: Annotated[float, Field(gt=0.0)] = 1.0
    """CPUs Ray reserves for each agent."""
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs, or fractions of one, Ray reserves for each agent."""


def is_incidental(key: str) -> bool:
    """Return whether a setting, by its dotted key, never changes a result."""
    return key.partition(".")[0] in INCIDENTAL
