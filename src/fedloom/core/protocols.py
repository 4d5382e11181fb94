"""The interfaces between rooms. Small on purpose: a strategy, a workload or a runtime is one class of these.

The call order of one round, as the server's loop makes it:

    cohort   = selection.choose(...)
    exchange = strategy.plan(state, context)            # who does what, with which inputs
    total    = the exchange's answers, folded by its accumulator where the clients run
    step     = strategy.finish(state, total, context)   # the next state, or one more exchange of this round
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from fedloom.core.accumulators import Accumulator
from fedloom.core.records import (
    Array,
    Arrays,
    ClientReport,
    Exchange,
    Info,
    Job,
    Metrics,
    Record,
    RoundContext,
    Update,
)

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Pending(Generic[S]):
    """A strategy's answer when the round is not over: the state so far and one more exchange."""

    state: S
    exchange: Exchange


class Strategy(Protocol[S]):
    """The server half of a federated algorithm, as a pure value: state in, state out.

    No I/O, no clock, no randomness but `context.rng`, no mutation of arguments. `S` is a frozen dataclass of arrays
    (or mappings of them) and JSON values, so the platform can save it (`core.state`). The client half, if there is
    one, is the folder's `rule.py`; an unusual fold is its `accumulator.py`.

    A strategy may also have `model_inputs(state) -> Mapping[str, Record]`, the inputs from which clients evaluate the
    global model (a frozen base beside what was trained on it, say), and `report(state) -> Mapping[str, Any]`, numbers
    for the round's record.
    """

    @property
    def State(self) -> type[S]:
        """The dataclass its states are: what a checkpoint is read back into. A class attribute does."""

    def init(self, model: Record) -> S:
        """The state before round 1, from the workload's initial record."""

    def plan(self, state: S, context: RoundContext) -> Exchange | None:
        """The round's first exchange; None when the strategy wants no further round."""

    def finish(self, state: S, total: Accumulator, context: RoundContext) -> S | Pending[S]:
        """The state after the exchange, or one more exchange of the same round.

        `total` holds at least one update and may be consumed.
        """

    def arrays(self, state: S) -> Arrays:
        """The global model: what is exported and hashed, and evaluated where there is no `model_inputs`."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The federation's clients as a selection sees them; never a list as long as the population."""

    population: int
    sizes: Sequence[int] = ()
    """Examples per client where the workload declares them, else empty."""
    label_counts: Sequence[Sequence[int]] = ()
    """Examples per class for each client where the workload declares them, else empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Candidates to be measured before the cohort is chosen among them."""

    candidates: tuple[int, ...]
    """Distinct clients, in the order their reports will come."""
    kind: str
    """`evaluate`: the global model's metrics on the client's training data. `measure`: what `measure` tells of it, and
    nothing else. `train`: local training, whose update stays on the client until it is collected (or forgotten at the
    end of the round)."""
    measure: str | None = None
    """Name of the selection folder whose `measure.py` says what a candidate reports."""
    knobs: Info = field(default_factory=dict)
    """Settings the measure sees, JSON (merged over the exchange's own)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telling:
    """What every client of the cohort reports beside its update."""

    measure: str
    """Name of the selection folder whose `measure.py` says it."""
    knobs: Info = field(default_factory=dict)
    """Settings the measure sees, JSON (merged over the exchange's own)."""


class Measure(Protocol):
    """What a client tells about itself: a selection's client half, in its `measure.py`.

    A measure may also have `together(workload, model, updates, shards, rngs, knobs) -> list[Info] | None`, which does
    a whole group at once; None where this workload does not allow it.
    """

    def __call__(
        self,
        workload: Workload,
        model: Record,
        update: Update,
        shard: Shard,
        rng: np.random.Generator,
        knobs: Info,
    ) -> Info:
        """Numbers for the client's report.

        Args:
            workload: the client's workload; a measure may need more of it than the interface has, and must say so.
            model: the global model as received.
            update: the client's update; its arrays may be views, nothing may be kept. Without arrays where the client
                was not asked to train.
            shard: the client's training data.
            rng: one stream for this client and round, for draws that before and after must share.
            knobs: settings of the exchange and the job.

        Returns:
            JSON: floats and lists of floats. Each float counts as one parameter sent.
        """


class Selection(Protocol[S]):
    """Who is asked. Pure, with a state of its own; composes with any strategy.

    A selection may also have `telling(state) -> Telling | None`, what the cohort's clients report beside their updates,
    and `missed(state, clients) -> S`, the state once `observe` has been followed by who was asked in vain.
    """

    @property
    def State(self) -> type[S]:
        """The dataclass its states are. A class attribute does."""

    def init(self, roster: Roster) -> S:
        """The state before round 1."""

    def probe(self, state: S, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        """Candidates to measure before choosing; None chooses from what is known already.

        `rng` is the stream `choose` gets in a round without a probe; after a probe `choose` has one of its own.
        """

    def choose(
        self, state: S, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[ClientReport] = ()
    ) -> tuple[int, ...]:
        """`size` distinct clients, 0 <= client < roster.population, in the order they will be folded.

        `reports` are the probe's, in candidate order; after a `train` probe only candidates that reported may be
        chosen.
        """

    def observe(self, state: S, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> S:
        """The state after a round.

        Args:
            state: as `probe` and `choose` saw it.
            reports: of the clients that trained for the round.
            probed: the probe's, as `choose` got them; empty where there was none.
        """


class LocalRule(Protocol):
    """A strategy's client half: what happens to gradients, and to the update before it leaves.

    Tensors may be NumPy's or torch's: a rule uses arithmetic operators and in-place methods both have. Everything it
    needs arrives in `knobs` (the exchange's and the job's together). A rule object serves one job and may keep what it
    learns in it.

    A rule may also have `incoming(inputs, job) -> inputs`, which turns what was sent into what the workload reads (the
    reverse of `outgoing`), and `begin(trained, knobs)`, called before training with the (group, name) of each trained
    array, in the order of the gradients.
    """

    def adjust_gradients(
        self, gradients: Sequence[Any], parameters: Sequence[Any], anchor: Sequence[Any], knobs: Info
    ) -> None:
        """Change the gradients in place before a local optimiser step.

        Args:
            gradients: gradient of the local loss, one entry per trained array.
            parameters: local weights w, same order and shapes; read-only.
            anchor: the global weights as received, same order and shapes, or those of the job's input `anchor` where
                it has one; read-only.
            knobs: settings of the exchange and the job.
        """

    def outgoing(self, update: Update, knobs: Info) -> Update:
        """The update as it leaves the client."""


class Shard(Protocol):
    """A client's data, opaque to the platform but for its size."""

    @property
    def num_examples(self) -> int:
        """Examples in the shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadInfo:
    """What a workload tells the server once, before round 1. JSON all through."""

    data: Info
    """Where the examples come from: name, kind (`real`, `rendered`, `synthetic`), sha256, licence."""
    client_sizes: Sequence[int] = ()
    """Training examples of each client; empty where that is not known."""
    label_counts: Sequence[Sequence[int]] = ()
    """Examples per class for each client, for the picture of who holds what; empty where there are no classes."""
    label_names: Sequence[str] = ()
    watch: Mapping[str, str] = field(default_factory=dict)
    """Metrics of the evaluation that are 0 as long as all is well, and what to tell a person when they are not."""
    exponentials: Mapping[str, str] = field(default_factory=dict)
    """Metrics of the evaluation that are e to the power of another one's mean, such as `perplexity` of `loss`: means
    add up over the parts of the held-out data, their exponentials do not."""


class Workload(Protocol):
    """Data, model and local training. Runs on agents only; the server never imports one."""

    def describe(self) -> WorkloadInfo:
        """Facts for the server and the report."""

    def init(self, rng: np.random.Generator) -> Record:
        """The initial global model, group `model`; only arrays that travel.

        `info` may say what strategies need to know of it, such as which layers can carry adapters.
        """

    def shard(self, client: int) -> Shard:
        """A client's training data."""

    def held_out(self, part: int, parts: int) -> Shard | None:
        """Part `part` of `parts` of the test set (0 <= part < parts); None where there is no test set."""

    def train(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        shard: Shard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        """One client's local training, starting from `inputs["model"]`.

        `job.knobs` already holds the exchange's knobs. `inputs` is the same object for all clients of a group, so
        what is derived from it may be cached. The update's arrays may alias the workload's buffers.
        """

    def evaluate(self, inputs: Mapping[str, Record], shard: Shard) -> Metrics:
        """Metrics of the global model on a shard, each weighted by the examples it was taken over.

        `inputs` holds what `train` starts from: `model` and whatever else the strategy sends beside it.
        """


class LabelFreeWorkload(Workload, Protocol):
    """A classification workload that a monitor can watch."""

    def logits(self, inputs: Mapping[str, Record], shard: Shard) -> tuple[Array, Array | None]:
        """What the global model says of a shard: logits, (n, K), and the labels, (n,), where they are known.

        `inputs` as for `evaluate`. The labels never reach the monitor's client half: they make the truth shown beside
        its estimate.
        """


class Watch(Protocol):
    """A monitor's client half, in its `watch.py`: what a client sends instead of its data."""

    def __call__(self, logits: Array) -> Info:
        """JSON made of the model's logits (n, K) on the client's data. Each float counts as one parameter sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Who is watched in a round."""

    clients: tuple[int, ...]
    """Clients, in order; or, with `pieces`, pieces of the held-out data."""
    pieces: int | None = None
    """The held-out data is cut into so many pieces that stand for clients' new data; None asks for training data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What a monitor makes of a round's answers."""

    metrics: Mapping[str, float]
    """Shown beside the evaluation's metrics."""
    info: Info
    """For the round's record, JSON; those of earlier rounds are handed to `tell`."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """By name, what a person should know now. One is told when it comes and when it goes."""


class Monitor(Protocol):
    """What is told of the global model where there are no labels, the server half: `monitor.py` of its folder.

    Pure: it is handed what it told of earlier rounds, so that a resumed run goes on alike.
    """

    def asked(self, population: int, rng: np.random.Generator) -> Asked:
        """Who is asked in a round."""

    def tell(self, answers: Sequence[ClientReport], earlier: Sequence[Info]) -> Watched:
        """What the answers say. A report's `info` is the watch's; its metric `accuracy` is there where labels are."""


class GroupWorkload(Workload, Protocol):
    """A workload that can train a whole group of clients as one vectorised program."""

    @property
    def program(self) -> str:
        """`group` where `train_group` is to be used, `loop` where clients are trained one by one."""

    def train_group(
        self,
        jobs: Sequence[Job],
        inputs: Mapping[str, Record],
        shards: Sequence[Shard],
        rule: LocalRule | None,
        rngs: Sequence[np.random.Generator],
    ) -> list[Update]:
        """Every job's `train`, in order; equal to it within a stated tolerance.

        A job's bits must not depend on which others are in its group. The updates own their arrays.
        """


class StatefulWorkload(Workload, Protocol):
    """A workload with actions of its own, or with something each client keeps between its jobs."""

    def act(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        state: Record | None,
        rng: np.random.Generator,
        rule: LocalRule | None = None,
    ) -> Update:
        """Do any job, `train` and `evaluate` included.

        `state` is what the client's last update asked to keep; `rule` the strategy's client half, for jobs that train.
        """


class Sink(Protocol):
    """Where a run's events go: files, the terminal, metrics, watchers."""

    def write(self, event: Any) -> None:
        """Take one of `core.events`."""

    def close(self) -> None:
        """Flush."""
