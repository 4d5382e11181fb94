"""Reads the clients' updates that a run has saved, for methods that need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fedloom.core import frames
from fedloom.core.distances import length
from fedloom.core.errors import BadFrame, CheckpointCorrupt, UsageError
from fedloom.core.records import MODEL, Record
from fedloom.core.run_files import UPDATES

NEED_NONE = ("drop", "noisy_labels", "gradient_ascent")
"""Methods that need no history."""


class History:
    """The updates a run has saved, by round and client.

    Args:
        folder: the run's.
        rounds: number of rounds the run has done.

    Raises:
        UsageError: the run has not saved its clients' updates from its first round on.
    """

    def __init__(self, folder: Path, rounds: int) -> None:
        self._folder = folder / UPDATES
        missing = [number for number in range(1, rounds + 1) if not self._of(number).is_dir()]
        if missing:
            raise UsageError(
                f"{folder}: this method needs what each client changed, from round 1 on, and round {missing[0]} has "
                "nothing (checkpoint.client_updates = true and round.group_size = 1 keep it). Methods that work: "
                f"{', '.join(NEED_NONE)}"
            )
        self.rounds = rounds

    def clients(self, round: int) -> Mapping[int, Path]:
        """Return the files of a round's updates, by client, sorted."""
        found = {int(path.stem): path for path in self._of(round).glob("*.safetensors")}
        return dict(sorted(found.items()))

    def last_of(self, client: int) -> tuple[int, Record] | None:
        """Return the last round that has an update of a client, and the update; None if there is none."""
        for number in range(self.rounds, 0, -1):
            path = self.clients(number).get(client)
            if path is not None:
                return number, _read(path)
        return None

    def lengths(self, every: int, without: int) -> Iterator[Mapping[str, float]]:
        """Yield the L2 length of each update but one client's, by client, for every n-th round that has some."""
        for number in range(1, self.rounds + 1, every):
            found = {
                str(client): length(_read(path).groups[MODEL])
                for client, path in self.clients(number).items()
                if client != without
            }
            if found:
                yield found

    def _of(self, round: int) -> Path:
        return self._folder / f"{round:06d}"


def _read(path: Path) -> Record:
    try:
        return frames.decode(path.read_bytes())
    except BadFrame as exc:
        raise CheckpointCorrupt(f"{path}: a stored update cannot be read: {exc}") from exc
