"""A run's folder on disk: see `run_store.py` for what is in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tomli_w
import xxhash

from fedloom.core import files, frames
from fedloom.core.config import Experiment
from fedloom.core.errors import BadFrame, CheckpointCorrupt, LimitExceeded, NotFound, RunExists
from fedloom.core.history import Choice, RoundRecord, RunSummary
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Arrays, Record
from fedloom.server.store.files import full_disk, write, write_frame
from fedloom.server.store.pinned_files import PinnedFiles
from fedloom.server.store.run_store import Checkpoint, event_json

Line = TypeVar("Line", RoundRecord, Choice)

_CHECKPOINT = re.compile(r"round-(\d{6,})\.([0-9a-f]{32})\.safetensors")
"""Round and XXH3-128 checksum. The checksum is in the name so that one rename makes a checkpoint complete."""


class DiskRunStore:
    """A run's folder."""

    def __init__(self, folder: Path, run_id: str | None = None) -> None:
        self._folder = folder
        self.run_id = run_id or folder.name
        self._clients: dict[int, dict[tuple[int, int], Path]] | None = None
        self._pinned = PinnedFiles(folder / "checkpoints")
        self._lock = threading.Lock()

    @classmethod
    def create(cls, folder: Path, run_id: str) -> DiskRunStore:
        """A new run's folder.

        Raises:
            RunExists: there is a run (or anything else) in it already.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunExists(
                f"{folder} is not empty; runs are never overwritten. Choose another --out, or go on with it: "
                f"fedloom resume {folder}"
            )
        with full_disk(folder):
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        return cls(folder, run_id)

    @classmethod
    def open(cls, folder: Path) -> DiskRunStore:
        """An existing run's folder.

        Raises:
            NotFound: it is not one.
        """
        if not (folder / "experiment.toml").is_file():
            raise NotFound(f"{folder} is not a run's folder: it has no experiment.toml")
        return cls(folder, _read_json(folder / "run.json").get("run_id", folder.resolve().name))

    @property
    def folder(self) -> Path | None:
        return self._folder

    def begin(self, experiment: Experiment) -> None:
        write(self._folder / "run.json", json.dumps({"run_id": self.run_id}).encode())
        write(self._folder / "experiment.toml", tomli_w.dumps(experiment.to_dict()).encode())

    def experiment(self) -> Experiment:
        return Experiment.load(self._folder / "experiment.toml")

    def save_workload(self, info: WorkloadInfo) -> None:
        write(self._folder / "workload.json", json.dumps(dataclasses.asdict(info)).encode())

    def workload(self) -> WorkloadInfo | None:
        values = _read_json(self._folder / "workload.json")
        return WorkloadInfo(**values) if values else None

    def append_round(self, record: RoundRecord) -> None:
        self._append("rounds.jsonl", record)

    def rounds(self, upto: int | None = None) -> list[RoundRecord]:
        return self._lines("rounds.jsonl", RoundRecord, upto)

    def append_choice(self, choice: Choice) -> None:
        self._append("choices.jsonl", choice)

    def choices(self, upto: int | None = None) -> list[Choice]:
        return self._lines("choices.jsonl", Choice, upto)

    def _append(self, name: str, line: RoundRecord | Choice) -> None:
        with full_disk(self._folder), (self._folder / name).open("a") as file:
            file.write(line.model_dump_json() + "\n")

    def _lines(self, name: str, kind: type[Line], upto: int | None) -> list[Line]:
        path = self._folder / name
        lines: list[Line] = []
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                lines.append(kind.model_validate_json(text))
            except pydantic.ValidationError:
                break  # the process died in the middle of this line; the round is done again
        if upto is not None:
            lines = [line for line in lines if line.round <= upto]
            write(path, "".join(line.model_dump_json() + "\n" for line in lines).encode())
        return lines

    def append_event(self, event: Any) -> None:
        line = json.dumps(event_json(event))
        with self._lock, full_disk(self._folder), (self._folder / "events.jsonl").open("a") as file:
            file.write(line + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Everything that happened so far, as in `events.jsonl`."""
        path = self._folder / "events.jsonl"
        events = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):  # the process died, or the disk was full, in the middle of this line
                events.append(json.loads(line))
        return events

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        rounds = self._folder / "rounds.jsonl"
        if rounds.exists():
            with full_disk(self._folder), rounds.open("rb") as file:
                os.fsync(file.fileno())
        folder = self._folder / "checkpoints"
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
                f"no checkpoint in {self._folder / 'checkpoints'} is sound:\n  "
                + "\n  ".join(problems)
                + "\nRestore the folder from a backup, or run the experiment again into another folder"
            )
        return None

    def save_client(self, client: int, round: int, exchange: int, state: Record) -> None:
        path = self._folder / "clients" / f"{client}-{round}-{exchange}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_frame(path, state)
        self._client_files().setdefault(client, {})[round, exchange] = path

    def client(self, client: int, before: tuple[int, int]) -> Record | None:
        older = [at for at in self._client_files().get(client, {}) if at < before]
        return frames.decode(self._client_files()[client][max(older)].read_bytes()) if older else None

    def prune_clients(self, round: int) -> None:
        for kept in self._client_files().values():
            for at in sorted(at for at in kept if at < (round + 1, 0))[:-1]:
                kept.pop(at).unlink(missing_ok=True)

    def save_model(self, arrays: Arrays) -> None:
        (self._folder / "model").mkdir(exist_ok=True)
        write_frame(self._folder / "model" / "model.safetensors", Record({"model": arrays}))

    def save_summary(self, summary: RunSummary) -> None:
        write(self._folder / "summary.json", summary.model_dump_json(indent=2).encode() + b"\n")

    def discard(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        folder = self._folder / "checkpoints"
        found = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("round-*.safetensors")]
        newest_last = [(int(match[1]), path) for match, path in found if match]
        return sorted(newest_last, key=lambda item: (item[0], item[1].stat().st_mtime_ns))

    def _client_files(self) -> dict[int, dict[tuple[int, int], Path]]:
        if self._clients is None:
            self._clients = {}
            for path in (self._folder / "clients").glob("*.safetensors"):
                client, round, exchange = map(int, path.stem.split("-"))
                self._clients.setdefault(client, {})[round, exchange] = path
        return self._clients


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def _read_checkpoint(path: Path) -> Record:
    content, match = path.read_bytes(), _CHECKPOINT.fullmatch(path.name)
    if match is None or xxhash.xxh3_128(content).hexdigest() != match[2]:
        raise BadFrame("its checksum is wrong: the file was damaged after it was written")
    return frames.decode(content)


def _named_in(path: Path) -> list[str]:
    """Digests of the pinned records a checkpoint names; of a damaged one, which no resume will read, none."""
    with contextlib.suppress(BadFrame, LimitExceeded, KeyError):
        return list(frames.decode(path.read_bytes()).info["pinned"])
    return []
