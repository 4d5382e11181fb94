"""Data, model and local training, and optional abilities of workloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast, runtime_checkable

import numpy as np

from fedloom.core.errors import UnsupportedFeature
from fedloom.core.protocols.rule import Inputs, LocalRule
from fedloom.core.records import Array, Info, Job, Metrics, Record, Update


class Shard(Protocol):
    """A client's data, opaque to the platform but for its size."""

    @property
    def num_examples(self) -> int:
        """Return the examples in the shard; 0 also if the workload does not know."""


@runtime_checkable
class CanBeEmpty(Protocol):
    """A shard of a partition that may leave a client without examples."""

    @property
    def is_empty(self) -> bool:
        """Return whether it is known to have no examples to train on."""


def is_empty(shard: Shard) -> bool:
    """Return whether a shard is known to have no example: one that is `CanBeEmpty`, and is."""
    try:
        return bool(cast("CanBeEmpty", shard).is_empty)  # tried: a check against a protocol is too slow for every job
    except AttributeError as exc:
        if exc.name not in ("is_empty", None):  # the shard's own fault
            raise
        return False


Sh = TypeVar("Sh", bound=Shard)
Sh_contra = TypeVar("Sh_contra", bound=Shard, contravariant=True)
C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadInfo:
    """A workload's description of itself, sent to the server once, before round 1. JSON throughout."""

    data: Info
    """Source of the examples: name, kind (`real`, `rendered`, `synthetic`), sha256, licence."""
    client_sizes: Sequence[int] = ()
    """Training examples of each client; empty if unknown."""
    label_counts: Sequence[Sequence[int]] = ()
    """Examples per class for each client, for the picture of the partition; empty if there are no classes."""
    label_names: Sequence[str] = ()
    watch: Mapping[str, str] = field(default_factory=dict)
    """Metrics of the evaluation that should stay 0, and the advice to print when one does not."""
    exponentials: Mapping[str, str] = field(default_factory=dict)
    """Metrics of the evaluation that are the exponential of another one's mean, such as `perplexity` of `loss`: they
    are exponentiated after averaging over the parts of the held-out data."""


class Workload(Protocol[Sh]):
    """Data, model and local training, for one kind of shard. Runs on agents only; the server never imports one."""

    def describe(self) -> WorkloadInfo:
        """Return facts for the server and the report."""

    def init(self, rng: np.random.Generator) -> Record:
        """Return the initial global model, group `model`; only arrays that are sent.

        `info` may contain what strategies need to know about it, such as which layers can have adapters.
        """

    def shard(self, client: int) -> Sh:
        """Return a client's training data."""

    def held_out(self, part: int, parts: int) -> Sh | None:
        """Return part `part` of `parts` of the test set (0 <= part < parts); None without a test set."""

    def train(self, job: Job, inputs: Inputs, shard: Sh, rule: LocalRule | None, rng: np.random.Generator) -> Update:
        """Train one client, starting from `inputs["model"]`.

        Args:
            job: its `knobs` include the exchange's.
            inputs: the same object for all clients of a group, so values derived from it may be cached.
            shard: the client's training data.
            rule: the strategy's client half, or None.
            rng: the job's own randomness.

        Returns:
            The update; its arrays may alias the workload's buffers.
        """

    def evaluate(self, inputs: Inputs, shard: Sh) -> Metrics:
        """Return metrics of the global model on a shard, each weighted by its number of examples.

        `inputs` contains the inputs of `train`: `model` and any other the strategy sends.
        """


@runtime_checkable
class HasLogits(Protocol[Sh_contra]):
    """A classification workload whose outputs can be read."""

    def logits(self, inputs: Inputs, shard: Sh_contra) -> tuple[Array, Array | None]:
        """Return the global model's logits on a shard, (n, K), and the labels, (n,), if known.

        `inputs` as for `evaluate`.
        """


@runtime_checkable
class TrainsGroups(Protocol[Sh_contra]):
    """A workload that can train a whole group of clients as one vectorised program."""

    @property
    def program(self) -> str:
        """Return `group` if `train_group` is to be used, `loop` if clients are trained one by one."""

    def train_group(
        self, jobs: Sequence[Job], inputs: Inputs, shards: Sequence[Sh_contra], rngs: Sequence[np.random.Generator]
    ) -> list[Update]:
        """Return every job's `train` without a rule, in order; equal to it within a stated tolerance.

        A job's bits must not depend on which others are in its group. The updates own their arrays.
        """


@runtime_checkable
class KeepsClientState(Protocol[Sh_contra]):
    """A workload with a state for each client between its jobs."""

    keeps_client_state: bool
    """Declares the capability; true."""

    def train(
        self,
        job: Job,
        inputs: Inputs,
        shard: Sh_contra,
        rule: LocalRule | None,
        rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:
        """Train one client; `state` is the last `Update.state` of this client, None before the first."""

    def evaluate(self, inputs: Inputs, shard: Sh_contra, state: Record | None = None) -> Metrics:
        """Return metrics of the global model on a shard; `state` is the client's, None for held-out data."""


class Action(Protocol):
    """A workload's operation for a job other than training and evaluation."""

    def __call__(self, job: Job, inputs: Inputs, state: Record | None, rng: np.random.Generator) -> Update:
        """Do the job; `state` is the last `Update.state` of this client, None before the first."""


@runtime_checkable
class HasActions(Protocol):
    """A workload with custom actions."""

    @property
    def actions(self) -> Mapping[str, Action]:
        """Return actions by kind of job. One named `evaluate` replaces the platform's evaluation on a client.

        A kind with dots (`train.fine_tune`) is looked up whole, then by its first part.
        """


def require(workload: object, capability: type[C], wanted_by: str, hint: str = "choose another workload") -> C:
    """Return the workload as something that has a capability.

    Args:
        workload: what should have it.
        capability: a runtime-checkable protocol.
        wanted_by: the part that needs it, in the user's terms: `selection 'firing_credit'`.
        hint: what to do instead.

    Raises:
        UnsupportedFeature: it lacks members of the protocol; the message names them.
    """
    if isinstance(workload, capability):
        return workload
    members = sorted(name for name in dir(capability) if not name.startswith("_"))
    members += sorted(name for name in capability.__annotations__ if name not in members)
    missing = ", ".join(name for name in members if not hasattr(workload, name))
    raise UnsupportedFeature(
        f"{wanted_by} needs a workload with {missing or ', '.join(members)} ({capability.__name__}), but "
        f"{type(workload).__name__} has none; {hint}, or remove {wanted_by}"
    )
