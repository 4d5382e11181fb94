"""Tracks which clients have read which pinned records, so that such a record counts once for each client."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np

from fedloom.core.pinned import Pinned
from fedloom.core.records import Array, Job, Record


class PinLedger:
    """Clients by the digests of the pinned records they have read. Part of a run's progress, saved with it."""

    def __init__(self, saved: Mapping[str, Array] | None = None) -> None:
        self._clients = {sha256: set(map(int, clients)) for sha256, clients in (saved or {}).items()}

    def mark(self, jobs: Iterable[Job], inputs: Mapping[str, Record]) -> tuple[Job, ...]:
        """Return the jobs, each with the names of the inputs its client has read before."""
        pinned = {name: record.sha256 for name, record in inputs.items() if isinstance(record, Pinned)}
        return tuple(jobs) if not pinned else tuple(self._marked(job, pinned) for job in jobs)

    def learn(self, job: Job, inputs: Mapping[str, Record]) -> None:
        """Record that the job's client has read the job's inputs."""
        if not job.of_client:
            return
        for name in job.inputs:
            record = inputs[name]
            if isinstance(record, Pinned):
                self._clients.setdefault(record.sha256, set()).add(job.client)

    def retain(self, digests: Collection[str]) -> None:
        """Drop records that will not be used again."""
        self._clients = {sha256: clients for sha256, clients in self._clients.items() if sha256 in digests}

    def arrays(self) -> dict[str, Array]:
        """Return sorted client numbers by digest, int64, for a checkpoint."""
        return {sha256: np.array(sorted(clients), np.int64) for sha256, clients in self._clients.items()}

    def _marked(self, job: Job, pinned: Mapping[str, str]) -> Job:
        cached = tuple(
            name for name in job.inputs if name in pinned and job.client in self._clients.get(pinned[name], ())
        )
        return replace(job, cached_inputs=cached) if cached and job.of_client else job
