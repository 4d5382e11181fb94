"""The base's results, kept by commit and machine so that a second comparison runs only the files here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.same_bits.machine import digest
from benchmarks.same_bits.outcome import Done, StrangeSummary, decode, encode
from benchmarks.same_bits.plan import Job


@dataclass(frozen=True)
class Store:
    """The results of one commit on one machine: a file for each run, written as it ends."""

    folder: Path

    def get(self, job: Job) -> Done | None:
        """Return the run's result, or None where it is not there or not readable."""
        try:
            return decode(self._path(job).read_text(encoding="utf-8"))
        except (FileNotFoundError, StrangeSummary):
            return None

    def put(self, job: Job, outcome: Done) -> None:
        """Keep a result; comparisons that run together may both do so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{job.name}.{os.getpid()}"
        beside.write_text(encode(outcome), encoding="utf-8")
        beside.rename(self._path(job))

    def _path(self, job: Job) -> Path:
        return self.folder / f"{job.name}.json"


def open_store(cache: Path, commit: str, machine: Mapping[str, object]) -> Store:
    """Open the results of a commit on a machine; `machine.json` beside them says which machine that is."""
    folder = cache / "results" / commit[:12] / digest(machine)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "machine.json").write_text(json.dumps(machine, indent=1) + "\n", encoding="utf-8")
    return Store(folder)
