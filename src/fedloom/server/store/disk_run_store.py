"""A run's folder on disk: see `core.run_files` for its files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import tomli_w
import xxhash

from fedloom.core import files, frames, run_files
from fedloom.core.config import Experiment
from fedloom.core.errors import BadFrame, CheckpointCorrupt, LimitExceeded, NotFound, RunExists
from fedloom.core.events import Event
from fedloom.core.history import Choice, RosterLine, RoundRecord, RunSummary
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.provenance import Provenance, changes_since, read_provenance
from fedloom.core.records import Arrays, Info, Record
from fedloom.core.run_files import (
    CHECKPOINTS,
    CHOICES,
    CLIENTS,
    EVENTS,
    EXPERIMENT,
    MODEL,
    PROVENANCE,
    ROSTERS,
    ROUNDS,
    RUN,
    START,
    SUMMARY,
    UPDATES,
    WORKLOAD,
)
from fedloom.server.store.claim import claimed
from fedloom.server.store.data_places import save_data_places, with_data_found
from fedloom.server.store.files import full_disk, write, write_frame
from fedloom.server.store.pinned_files import PinnedFiles
from fedloom.server.store.plugin_copies import changed_code, portable, save_code, saved_code
from fedloom.server.store.run_store import Checkpoint, event_json

_CHECKPOINT = re.compile(r"round-(\d{6,})\.([0-9a-f]{32})\.safetensors")
"""Round and XXH3-128 checksum. The checksum is in the name so that one rename completes a checkpoint."""


class DiskRunStore:
    """A run's folder."""

    def __init__(self, folder: Path, run_id: str | None = None) -> None:
        self._folder = folder
        self.run_id = run_id or folder.name
        self._begun_here = False
        self._clients: dict[int, dict[tuple[int, int], Path]] | None = None
        self._pinned = PinnedFiles(folder / CHECKPOINTS)
        self._lock = threading.Lock()

    @classmethod
    def create(cls, folder: Path, run_id: str) -> DiskRunStore:
        """Create a new run's folder.

        Raises:
            RunExists: it already contains a run (or anything else).
        """
        if folder.exists() and not folder.is_dir():
            raise RunExists(
                f"{folder} is a file, expected a folder that does not exist or is empty. Choose another --out"
            )
        if folder.exists() and any(folder.iterdir()):
            raise RunExists(
                f"{folder} is not empty; runs are never overwritten. Choose another --out, or resume the run: "
                f"fedloom resume {folder}"
            )
        with full_disk(folder):
            (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        return cls(folder, run_id)

    @classmethod
    def open(cls, folder: Path) -> DiskRunStore:
        """Open an existing run's folder.

        Raises:
            NotFound: it is not one.
        """
        if not (folder / EXPERIMENT).is_file():
            raise NotFound(f"{folder} is not a run's folder: it has no {EXPERIMENT}")
        return cls(folder, run_files.read_run_id(folder))

    @property
    def folder(self) -> Path:
        return self._folder

    def claimed(self) -> AbstractContextManager[None]:
        return claimed(self._folder)

    def begin(self, experiment: Experiment) -> None:
        """Write the experiment down, and copy the code it refers to by path."""
        write(self._folder / RUN, json.dumps({"run_id": self.run_id}))
        values = save_code(self._folder, experiment)
        save_data_places(self._folder, experiment)
        write(self._folder / EXPERIMENT, tomli_w.dumps(values))
        self._begun_here = True

    def record_provenance(self, begun_with: Provenance) -> None:
        """Record the code outside the folder that the run begins with."""
        write(self._folder / PROVENANCE, begun_with.model_dump_json(indent=2) + "\n")

    def change_experiment(self, experiment: Experiment) -> None:
        """Write the experiment anew, such as with more rounds; the folder stays claimed."""
        save_data_places(self._folder, experiment)
        write(self._folder / EXPERIMENT, tomli_w.dumps(portable(self._folder, experiment)))

    def experiment(self) -> Experiment:
        written = Experiment.load(self._folder / EXPERIMENT, data_elsewhere=True)
        return with_data_found(self._folder, written)

    def changed_code(self) -> list[str]:
        if self._begun_here:
            return []
        then, copies = read_provenance(self._folder), saved_code(self._folder)
        code = [self._folder / each.copy_at for each in copies]
        outside = [] if then is None else changes_since(then, self.experiment(), code)
        return [*changed_code(self._folder), *outside]

    def save_workload(self, info: WorkloadInfo) -> None:
        write(self._folder / WORKLOAD, json.dumps(run_files.workload_values(info)))

    def workload(self) -> WorkloadInfo | None:
        return run_files.read_workload(self._folder)

    def append_round(self, record: RoundRecord) -> None:
        self._append(ROUNDS, record.model_dump_json())

    def rounds(self, upto: int | None = None) -> list[RoundRecord]:
        records = run_files.read_rounds(self._folder, upto)
        if upto is not None:
            self._rewrite(ROUNDS, records)
        return records

    def append_choice(self, choice: Choice) -> None:
        self._append(CHOICES, choice.model_dump_json())

    def choices(self, upto: int | None = None) -> list[Choice]:
        choices = run_files.read_choices(self._folder, upto)
        if upto is not None:
            self._rewrite(CHOICES, choices)
        return choices

    def append_roster(self, line: RosterLine) -> None:
        self._append(ROSTERS, line.model_dump_json())
        with full_disk(self._folder), (self._folder / ROSTERS).open("rb") as written:
            os.fsync(written.fileno())

    def rosters(self) -> list[RosterLine]:
        return run_files.read_rosters(self._folder)

    def append_event(self, event: Event) -> None:
        line = json.dumps(event_json(event))
        with self._lock:
            self._append(EVENTS, line)

    def events(self) -> list[Info]:
        """Return all events so far, as in `events.jsonl`."""
        return run_files.read_events(self._folder)

    def _append(self, name: str, line: str) -> None:
        with full_disk(self._folder):
            run_files.append_line(self._folder / name, line)

    def _rewrite(self, name: str, lines: Sequence[RoundRecord | Choice]) -> None:
        write(self._folder / name, "".join(line.model_dump_json() + "\n" for line in lines))

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        rounds = self._folder / ROUNDS
        if rounds.exists():
            with full_disk(self._folder), rounds.open("rb") as written:
                os.fsync(written.fileno())
        folder = self._folder / CHECKPOINTS
        self._pinned.save(checkpoint.pinned)
        digest = xxhash.xxh3_128()

        def place() -> Path:
            return folder / f"round-{checkpoint.round:06d}.{digest.hexdigest()}.safetensors"

        with full_disk(folder), files.replacing(place) as file:
            for piece in frames.pieces(checkpoint.record()):
                file.write(piece)
                digest.update(piece)
        for _, old in self._checkpoints()[:-keep]:
            old.unlink(missing_ok=True)
        if self._pinned.any:
            self._pinned.prune({sha256 for _, path in self._checkpoints() for sha256 in _named_in(path)})

    def latest_checkpoint(self) -> Checkpoint | None:
        problems = []
        for _, path in reversed(self._checkpoints()):
            try:
                return Checkpoint.from_record(_read_checkpoint(path), self._pinned.load)
            except (BadFrame, OSError) as exc:
                problems.append(f"{path.name}: {exc}")
        if problems:
            raise CheckpointCorrupt(
                f"no checkpoint in {self._folder / 'checkpoints'} is valid:\n  "
                + "\n  ".join(problems)
                + "\nRestore the folder from a backup, or run the experiment again in another folder"
            )
        return None

    def save_client(self, client: int, round: int, exchange: int, state: Record) -> None:
        path = self._folder / CLIENTS / f"{client}-{round}-{exchange}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_frame(path, state)
        self._client_files().setdefault(client, {})[round, exchange] = path

    def client(self, client: int, before: tuple[int, int]) -> Record | None:
        states = self._client_files().get(client)
        if not states:
            return None
        older = [at for at in states if at < before]
        return frames.decode(states[max(older)].read_bytes()) if older else None

    def prune_clients(self, round: int) -> None:
        for states in self._client_files().values():
            for at in sorted(at for at in states if at < (round + 1, 0))[:-1]:
                states.pop(at).unlink(missing_ok=True)

    def save_update(self, round: int, client: int, update: Record) -> None:
        path = self._folder / UPDATES / f"{round:06d}" / f"{client}.safetensors"
        with full_disk(self._folder):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_frame(path, update)

    def save_start(self, start: Record) -> None:
        write_frame(self._folder / START, start)

    def start(self) -> Record | None:
        path = self._folder / START
        try:
            return frames.decode(path.read_bytes()) if path.exists() else None
        except BadFrame as exc:
            raise CheckpointCorrupt(f"{path}: the model this run begins with cannot be read: {exc}") from exc

    def save_model(self, arrays: Arrays) -> None:
        path = self._folder / MODEL
        path.parent.mkdir(exist_ok=True)
        write_frame(path, Record({"model": arrays}))

    def save_summary(self, summary: RunSummary) -> None:
        write(self._folder / SUMMARY, summary.model_dump_json(indent=2) + "\n")

    def discard(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        folder = self._folder / CHECKPOINTS
        found = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("round-*.safetensors")]
        newest_last = [(int(match[1]), path) for match, path in found if match]
        return sorted(newest_last, key=lambda item: (item[0], item[1].stat().st_mtime_ns))

    def _client_files(self) -> dict[int, dict[tuple[int, int], Path]]:
        if self._clients is None:
            self._clients = {}
            for path in (self._folder / CLIENTS).glob("*.safetensors"):
                client, round, exchange = map(int, path.stem.split("-"))
                self._clients.setdefault(client, {})[round, exchange] = path
        return self._clients


def _read_checkpoint(path: Path) -> Record:
    content, match = path.read_bytes(), _CHECKPOINT.fullmatch(path.name)
    if match is None or xxhash.xxh3_128(content).hexdigest() != match[2]:
        raise BadFrame("its checksum is wrong: the file was damaged after it was written")
    return frames.decode(content)


def _named_in(path: Path) -> list[str]:
    """Return the digests of the pinned records a checkpoint names; none of a damaged one, which no resume reads."""
    with contextlib.suppress(BadFrame, LimitExceeded, KeyError):
        return list(frames.decode(path.read_bytes()).info["pinned"])
    return []
