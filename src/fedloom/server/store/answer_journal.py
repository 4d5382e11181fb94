"""Accepted results on disk, so that after a killed server no client trains again.

    runs/<id>/answers/000012-0-3.<checksum>.safetensors

is the result of group 3 in the first exchange of round 12: its sum as a frame, its reports in the frame's header. A
file exists before the result is acknowledged, and until a checkpoint of its round is on disk. It is written
without waiting for the disk: a killed process loses none, a power cut may; then the group is repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import xxhash

from fedloom.core import frames
from fedloom.core.errors import BadFrame, LimitExceeded
from fedloom.core.messages import GroupKey, GroupResult
from fedloom.core.pinned import Pinned
from fedloom.core.records import ClientFailure, ClientReport, Exchange, Info, Mean, Record
from fedloom.server.fleet.open_exchange import Answer
from fedloom.server.fleet.planned import PlannedGroup
from fedloom.server.store.files import full_disk

_NAME = re.compile(r"(\d{6,})-(\d+)-(\d+)\.([0-9a-f]{32})\.safetensors")
"""Round, exchange, group, and XXH3-128 checksum of the content."""


class AnswerJournal:
    """The results a run has accepted since its last checkpoint.

    Args:
        folder: for their files; created with the first one.
        run_id: the run's.
        settings: the experiment's; a result under other settings does not count.
    """

    def __init__(self, folder: Path, run_id: str, settings: Info) -> None:
        self._folder, self._run_id, self._settings = folder, run_id, settings

    def question(self, exchange: Exchange, groups: Sequence[PlannedGroup]) -> str:
        """Return the digest of all an exchange's results depend on: clients, inputs, settings.

        A result with another digest, of a run resumed from an older checkpoint or with other settings, does not count.
        """
        jobs = [dataclasses.asdict(job) for group in groups for job in group.jobs]
        halves = (exchange.accumulator, exchange.rules, exchange.measure)
        rest = (exchange.knobs, *halves, exchange.park, exchange.collects)
        digest = xxhash.xxh3_128(json.dumps([jobs, *rest, self._settings], sort_keys=True).encode())
        for name, record in sorted(exchange.inputs.items()):
            digest.update(name.encode())
            # What never changes, such as a frozen base, has its digest already.
            for piece in [record.sha256.encode()] if isinstance(record, Pinned) else frames.pieces(record):
                digest.update(piece)
        return digest.hexdigest()

    def keep(self, round: int, exchange: int, request: str, answer: Answer) -> None:
        """Store a result without its clients' states, which the run's store has.

        Raises:
            StorageFull: the disk is full.
        """
        assert answer.result is not None, "a failed group has no result to store"
        total = answer.total if answer.total is not None else Record()
        head = {
            "asked": request,
            "node": answer.node,
            "total": total.info if answer.total is not None else None,
            "busy_s": answer.result.busy_s,
            "reports": [dataclasses.asdict(report) for report in answer.result.reports],
            "failures": [dataclasses.asdict(failure) for failure in answer.result.failures],
        }
        record, checksum = Record(total.groups, head), xxhash.xxh3_128()
        stem = f"{round:06d}-{exchange}-{answer.index}"
        beside = self._folder / f".{stem}.tmp"
        with full_disk(self._folder):
            self._folder.mkdir(exist_ok=True)
            with beside.open("wb") as file:
                for piece in frames.pieces(record):
                    file.write(piece)
                    checksum.update(piece)
            beside.replace(self._folder / f"{stem}.{checksum.hexdigest()}.safetensors")

    def read(self, round: int, exchange: int, request: str) -> dict[int, Answer]:
        """Return the results of an exchange, by group; those with another digest and damaged ones are removed."""
        found = {}
        for at, path in self._files():
            if at[:2] != (round, exchange):
                continue
            record = _sound(path)
            if record is None or record.info["asked"] != request:
                path.unlink(missing_ok=True)
                continue
            found[at[2]] = _answer(GroupKey(self._run_id, *at), record)
        return found

    def drop(self, round: int, exchange: int) -> None:
        """Delete an exchange's results: they are incompatible with each other."""
        for at, path in self._files():
            if at[:2] == (round, exchange):
                path.unlink(missing_ok=True)

    def prune(self, round: int) -> None:
        """Delete the results up to a round whose checkpoint is on disk."""
        for at, path in self._files():
            if at[0] <= round:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder, unless it has results for resuming the run."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _files(self) -> list[tuple[tuple[int, int, int], Path]]:
        """Return round, exchange and group of every file, in order."""
        found = [(_NAME.fullmatch(path.name), path) for path in self._folder.glob("*.safetensors")]
        return sorted(((int(match[1]), int(match[2]), int(match[3])), path) for match, path in found if match)


def _sound(path: Path) -> Record | None:
    """Return a file's content; None if it is damaged."""
    match = _NAME.fullmatch(path.name)
    with contextlib.suppress(OSError, BadFrame, LimitExceeded):
        content = path.read_bytes()
        if match is not None and xxhash.xxh3_128(content).hexdigest() == match[4]:
            return frames.decode(content)
    return None


def _answer(key: GroupKey, record: Record) -> Answer:
    """Return the result of a record (inverse of `keep`)."""
    head = record.info
    reports = tuple(
        ClientReport(**{**values, "metrics": {name: Mean(**pair) for name, pair in values["metrics"].items()}})
        for values in head["reports"]
    )
    failures = tuple(ClientFailure(**values) for values in head["failures"])
    total = Record(record.groups, head["total"]) if head["total"] is not None else None
    result = GroupResult(key=key, total=None, reports=reports, failures=failures, busy_s=head["busy_s"])
    return Answer(index=key.group, node=head["node"], result=result, total=total)
