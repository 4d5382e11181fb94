"""Values shared by all packages: arrays in named groups, updates, jobs, exchanges.

Everything here is frozen; arrays inside are read-only by convention. Rounds count from 1; round 0 is the phase
before the first one. Clients are integers from 0 to `clients - 1`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedloom.core.seeds import Part, generator

Array = npt.NDArray[Any]
DType = np.dtype[Any]
Arrays = Mapping[str, Array]
Groups = Mapping[str, Arrays]
Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
Info = Mapping[str, Any]
"""A JSON object. (Typed loosely: JSON's recursion makes every reader cast.)"""
JsonObject = dict[str, Any]
"""A JSON object, or a table of settings in its form, while it is made; as loosely typed as `Info`."""

MODEL = "model"
"""Name of the group, and of the input, that carries the global model."""
INITIAL = "initial"
"""Name of the group that carries the workload's initial model, where a run begins with another one."""
UNTRAINED = "untrained"
"""Key in the info of a workload's initial model: names of the arrays that training changes but no optimiser steps, such
as batch normalisation's running statistics. Strategies average them."""


@dataclass(frozen=True, slots=True)
class Record:
    """The only serialisable type: arrays in named groups, and a JSON object. States, updates, payloads are records."""

    groups: Groups = field(default_factory=dict)
    info: Info = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, str, Array]]:
        """Yield every array as (group, name, array), in insertion order."""
        for group, arrays in self.groups.items():
            for name, array in arrays.items():
                yield group, name, array

    @property
    def num_elements(self) -> int:
        """Return the array elements in all groups: what "parameters sent" counts."""
        return sum(array.size for _, _, array in self.items())

    @property
    def num_bytes(self) -> int:
        """Return the bytes of array data, headers not included."""
        return sum(array.nbytes for _, _, array in self.items())


@dataclass(frozen=True, slots=True)
class Mean:
    """A metric that adds up: `sum` over `weight` units (examples, usually). Merging is `+`, reading is a division."""

    sum: float
    weight: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.sum + other.sum, self.weight + other.weight)

    @property
    def value(self) -> float:
        """Return the mean; NaN if nothing was measured."""
        return self.sum / self.weight if self.weight else float("nan")


Metrics = Mapping[str, Mean]


def add_metrics(left: Metrics, right: Metrics) -> Metrics:
    """Add two sets of metrics; a name that only one side has is included."""
    merged = dict(left)
    for name, mean in right.items():
        merged[name] = merged[name] + mean if name in merged else mean
    return merged


def metric_values(metrics: Metrics) -> dict[str, float]:
    """Return each metric's mean."""
    return {name: mean.value for name, mean in metrics.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One client's work in one exchange."""

    round: int
    client: int
    kind: str = "train"
    """`train`, `evaluate`, or a custom action of the workload."""
    inputs: tuple[str, ...] = (MODEL,)
    """Names of the exchange's inputs this client receives."""
    cached_inputs: tuple[str, ...] = ()
    """Those of `inputs` that are pinned and that this client has read before; the platform sets it."""
    knobs: Info = field(default_factory=dict)
    """Settings for this client alone; `Exchange.knobs` contains those for all."""
    weight: float = 1.0
    """Factor on the weight of this client's update in the aggregate, >= 0, dimensionless."""
    node: str = ""
    """The only node that may do the job, such as the client's own machine; empty for any. Stays on the server."""
    member: str = ""
    """Id of the member that this node has to be; empty for any. Stays on the server."""
    of_client: bool = True
    """Whether `client` is a client's number; False if it numbers a part of other work, such as of the held-out data.
    Pinned inputs of such a job are read by no client. Stays on the server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One client's result.

    The arrays may be views of the workload's own buffers and are valid until its next job: an accumulator copies
    whatever it retains.
    """

    num_examples: int
    groups: Groups = field(default_factory=dict)
    """Usually one group, `model`, with the trained weights (not their difference)."""
    metrics: Metrics = field(default_factory=dict)
    info: Info = field(default_factory=dict)
    state: Record | None = None
    """State for this client's next job (stored by the platform, never shown to strategies)."""
    traces: Arrays = field(default_factory=dict)
    """Data about local training, for measures of the same client; never sent."""


ContentsName = Literal["model", "subset", "accumulator"]
CONTENTS: tuple[ContentsName, ...] = ("model", "subset", "accumulator")
Contents = ContentsName | Mapping[str, Collection[str]]
"""Which arrays an update contains: those of the input `model` (group `model`); some of those (and their
`weights`, see `core.accumulators.MeanOfSenders`); what the accumulator accepts; or the names given for each group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Work for a set of clients, and how their updates are aggregated."""

    jobs: tuple[Job, ...]
    inputs: Mapping[str, Record] = field(default_factory=dict)
    """Broadcast payloads by name; each is encoded once, however many jobs read it. One that is `core.pinned.Pinned`
    is encoded once for all exchanges, and read once by each client."""
    knobs: Info = field(default_factory=dict)
    """Settings for every job of the exchange (merged under the job's own)."""
    accumulator: str = "mean"
    """A key of `core.accumulators.BUILTIN` (`mean`, `separate`, `metrics`, …), or the name of a strategy folder with an
    `accumulator.py`."""
    rules: tuple[str, ...] = ()
    """Names of the strategy folders whose `rule.py` are the client half, applied one after another."""
    updates: Contents = "model"
    """Which arrays each trained update contains; any other update makes the client fail."""
    measure: str | None = None
    """Name of the selection folder whose `measure.py` adds numbers to each report, or None."""
    park: bool = False
    """Park updates where they were made, for a later exchange of the round whose jobs have kind `collect`; only reports
    are sent. A parked update that was lost with its process is recomputed, bit for bit."""
    collects: int | None = None
    """Index of the exchange of this round whose parked updates the `collect` jobs of this one hand over."""
    reassign: bool = True
    """Whether a group whose node disconnected, failed or refused may be reassigned to another node."""
    quorum_fraction: float | None = None
    """Overrides the run's own quorum for this exchange."""
    deadline_s: float | None = None
    """Overrides the run's own deadline for this exchange; seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientReport:
    """Facts about one client's finished job, without arrays."""

    client: int
    num_examples: int
    seconds: float
    """Wall-clock seconds the client's work took."""
    metrics: Metrics = field(default_factory=dict)
    info: Info = field(default_factory=dict)
    num_trained: int = 0
    """1 if the client trained for this report, otherwise 0."""
    num_retrained: int = 0
    """1 if it trained again because its parked update was lost, otherwise 0."""
    bytes_down: int = 0
    """Size of the frames this client reads, without those it has cached; bytes."""
    bytes_up: int = 0
    """Size of the frame of this client's update alone; bytes."""
    params_down: int = 0
    """Array elements this client reads, without those it has cached."""
    params_up: int = 0
    """Array elements in this client's update."""

    @property
    def has_examples(self) -> bool:
        """Return whether the client used examples, trained or measured anything; one without examples did not."""
        return bool(self.num_examples or self.num_trained or self.metrics or self.info)

    @property
    def has_update(self) -> bool:
        """Return whether the aggregate includes this client's update, if it was to train; False without examples."""
        return self.has_examples or self.params_up > 0


def with_examples(reports: Sequence[ClientReport]) -> list[ClientReport]:
    """Return the reports of clients that used examples or trained."""
    return [report for report in reports if report.has_examples]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientFailure:
    """Why one client's work is missing from a round."""

    client: int
    round: int
    stage: str
    """Stage: `load`, `inputs`, `shard`, `train` (or another kind of job), `outgoing`, `aggregate`, `send`;
    `worker` if its process died, `deadline` if time ran out."""
    error: str
    """Exception type, dotted unless it is a builtin."""
    message: str
    traceback: str = ""
    """The last lines of the traceback."""
    node: str = ""
    seconds: float = 0.0
    """Wall-clock seconds the client's work took until then."""
    bytes_down: int = 0
    """Size of the frames the client had read for it, as in a report; bytes."""

    @property
    def words(self) -> str:
        """Return the error and its message, without the client."""
        return f"stage {self.stage}: {self.error}: {self.message}"

    def describe(self) -> str:
        """Return the failure as text, traceback last."""
        where = f" on {self.node}" if self.node else ""
        head = f"client {self.client}, round {self.round}, stage {self.stage}{where}: {self.error}: {self.message}"
        return f"{head}\n{self.traceback}".rstrip()


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundContext:
    """The facts of one round, read-only, as strategies and selections see them."""

    round: int
    cohort: tuple[int, ...]
    """Clients sampled to train, in the order the selection chose them."""
    population: int
    """Clients in the federation, N."""
    rounds: int | None
    """Rounds of the run, T; None if open."""
    seed: int

    def rng(self, *path: Part) -> np.random.Generator:
        """Return the strategy's generator for this round; `path` names its purpose."""
        return generator(self.seed, "strategy", self.round, *path)

    @property
    def is_last(self) -> bool:
        """Return whether this is known to be the run's last round."""
        return self.round == self.rounds

    def jobs(
        self, kind: str = "train", *, inputs: tuple[str, ...] = (MODEL,), knobs: Info | None = None
    ) -> tuple[Job, ...]:
        """Return one job for each client of the cohort."""
        return tuple(
            Job(round=self.round, client=client, kind=kind, inputs=inputs, knobs=knobs or {}) for client in self.cohort
        )


def arrays_sha256(arrays: Arrays) -> str:
    """Return the digest of a set of arrays: names, dtypes, shapes and bytes, in sorted order of names.

    For each array the hash takes the UTF-8 text `name\\0dtype\\0d0,d1,…\\0` and then its C-order bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.name}\0{','.join(map(str, arrays[name].shape))}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
