"""One job of one client, as everything that works on it sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from fedloom.client.run import Run
from fedloom.core.messages import Group
from fedloom.core.protocols import Inputs
from fedloom.core.records import MODEL, Arrays, Job
from fedloom.core.seeds import generator


@dataclass
class Turn:
    """A running job.

    Args:
        run: the run it is of.
        group: the group it is of.
        job: the job, with the exchange's knobs under its own.
        read: gets a group's inputs.
    """

    run: Run
    group: Group
    job: Job
    read: Callable[[Group], Inputs] = field(repr=False)
    stage: str = "load"
    """The current stage, for a failure's report."""
    draws_of: int | None = None
    """Index of the exchange whose randomness the job uses; None for the group's."""
    kind: str = field(init=False)
    """The first part of the job's kind: `train` for `train.fine_tune`."""
    _inputs: Inputs | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self.kind = self.job.kind.partition(".")[0]
        if self.group.knobs:
            self.job = replace(self.job, knobs={**self.group.knobs, **self.job.knobs})

    @property
    def own_job(self) -> Job:
        """Return the job as the workload sees it: the client of a site is the only one whose data it has."""
        return replace(self.job, client=0) if self.run.of_sites else self.job

    @property
    def inputs(self) -> Inputs:
        """Return the exchange's inputs by name: the same object for all clients of a group. Reading them is a stage."""
        if self._inputs is None:
            self.stage = "inputs"
            self._inputs = self.read(self.group)
        return self._inputs

    def rng(self, purpose: str | None = None) -> np.random.Generator:
        """Return the job's randomness, or that of one purpose for this client and round, the same in all exchanges."""
        seed, job = self.run.experiment.seed, self.job
        if purpose is not None:
            return generator(seed, purpose, job.round, job.client)
        exchange = self.group.key.exchange if self.draws_of is None else self.draws_of
        return generator(seed, job.kind, job.round, exchange, job.client)

    def model(self) -> Arrays | None:
        """Return the global model of the exchange; None if it sends none."""
        return self.inputs[MODEL].groups.get(MODEL) if MODEL in self.group.inputs else None

    def trained_again(self) -> Turn:
        """Return the training whose update the job was to collect, with the same bits, not parked or measured again."""
        group = replace(self.group, park=False, measure=None)
        return Turn(self.run, group, replace(self.job, kind="train"), self.read, draws_of=self.group.collects or 0)
