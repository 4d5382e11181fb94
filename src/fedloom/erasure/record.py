"""`erasure.json`: who has withdrawn from which run, what was done, what it cost, and what was checked."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fedloom.core import files

ERASURE = "erasure.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ModelFacts(_Frozen):
    """One global model."""

    sha256: str
    """`core.records.arrays_sha256` of its arrays."""
    evaluation: dict[str, float] = {}
    """Its metrics on the held-out data."""
    on_client: dict[str, float] = {}
    """Its metrics on the data of the client that has withdrawn; empty if they are not here."""
    distance_to_retrained: float | None = None
    """L2 distance to the model trained from the beginning without the client; None if that was not requested."""


class Cost(_Frozen):
    """Local trainings, one client in one round each."""

    forgetting: int
    """In the rounds that undo the client's contribution."""
    recovering: int
    """In the rounds without the client."""
    original: int
    """In the original run, without the client's own: what training anew would take."""

    @property
    def share(self) -> float:
        """Return the cost as a fraction of training anew."""
        return (self.forgetting + self.recovering) / max(self.original, 1)


class Erasure(_Frozen):
    """The content of `erasure.json`."""

    client: int
    """Who has withdrawn: the client's number in the original run."""
    method: str
    original: str
    """Folder of the original run."""
    original_run_id: str
    round: int
    """The original's last checkpoint, from which the client's contribution was removed."""
    took_part: list[int]
    """Rounds of the original run that have an update of the client."""
    forgetting_rounds: int
    recovering_rounds: int
    cost: Cost
    before: ModelFacts
    after: ModelFacts
    retrained: ModelFacts | None = None
    """The model trained from the beginning without the client, if requested."""
    jobs_of_client_after: int
    """Times the client was sampled or measured in the rounds without it: 0, counted in `choices.jsonl`."""
    purged: list[str] = []
    """Files and folders of the original run that were deleted."""

    def write(self, folder: Path) -> None:
        """Write the record into the new run's folder."""
        files.write(folder / ERASURE, self.model_dump_json(indent=2) + "\n")
