"""Calls to a server's Results service: fetch a run's files, read its log, delete it, resume it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import grpc

from fedloom.client.download import MAX_FILES, RemoteFile
from fedloom.client.link import connect, translate_reply
from fedloom.core.errors import BadMessage, FedloomError
from fedloom.core.identity import Identity
from fedloom.core.records import JsonObject
from fedloom.proto.v1 import results_pb2 as pb
from fedloom.proto.v1.results_pb2_grpc import ResultsStub

Reply = TypeVar("Reply")

LIST_TIMEOUT_S = 600.0
"""Seconds to wait for a list of files: the server reads each file for its digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a server offers of a run now."""

    files: tuple[RemoteFile, ...]
    status: str
    rounds_done: int
    rounds: int
    """Zero for a run without an end."""
    model_round: int
    """The round of the model that is listed; 0 for the final one, and where none is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """A run that was queued again."""

    status: str
    """The status it had."""
    rounds_done: int
    rounds: int
    """Zero for a run without an end."""


class ResultsClient:
    """A user's connection to a server, about runs that are there.

    Args:
        server: `host:port`.
        token: the server's shared secret; empty if it has none.
        identity: of the user; None on a server without members.
        timeout_s: seconds to wait for a response.
    """

    def __init__(
        self, server: str, token: str = "", *, identity: Identity | None = None, timeout_s: float = 10.0
    ) -> None:
        self._server, self._timeout_s = server, timeout_s
        self._metadata = (("fedloom-token", token),) if token else ()
        self._channel = connect(server, identity)
        self._stub = ResultsStub(self._channel)

    def files(self, run_id: str, kinds: Sequence[str] = ()) -> Offer:
        """List a run's files.

        Args:
            run_id: the run's.
            kinds: `model`, `report`, `records` and `checkpoints`; none for all.
        """
        reply = self._call(self._stub.Files, pb.FilesRequest(run_id=run_id, kinds=kinds), LIST_TIMEOUT_S)
        if len(reply.files) > MAX_FILES:
            raise BadMessage(f"the server lists {len(reply.files)} files of one run; expected at most {MAX_FILES}")
        return Offer(
            files=tuple(
                RemoteFile(name=each.name, kind=each.kind, size=each.size, sha256=each.sha256, length=each.length)
                for each in reply.files
            ),
            status=reply.status,
            rounds_done=reply.rounds_done,
            rounds=reply.rounds,
            model_round=reply.model_round,
        )

    def fetch(self, run_id: str, file: RemoteFile, offset: int) -> Iterator[bytes]:
        """Yield a file's content from an offset on."""
        request = pb.FetchRequest(run_id=run_id, name=file.name, length=file.length, offset=offset)
        try:
            for reply in self._stub.Fetch(request, metadata=self._metadata):
                yield reply.data
        except grpc.RpcError as exc:
            raise self._error(exc) from exc

    def logs(self, run_id: str) -> Iterator[JsonObject]:
        """Yield the run's events so far, as in `events.jsonl`."""
        try:
            for reply in self._stub.Logs(pb.LogsRequest(run_id=run_id), metadata=self._metadata):
                yield json.loads(reply.event_json)
        except grpc.RpcError as exc:
            raise self._error(exc) from exc

    def delete(self, run_id: str) -> str:
        """Delete a run and all it has saved; returns the status it had."""
        return str(self._call(self._stub.Delete, pb.DeleteRequest(run_id=run_id)).status)

    def resume(self, run_id: str, rounds: int | None = None, *, as_continuation: bool = False) -> Resumed:
        """Queue a run again that has ended.

        Args:
            run_id: the run's.
            rounds: the new number of rounds, counted from the run's first; None leaves it as it is.
            as_continuation: take it though the run depends on its number of rounds.
        """
        request = pb.ResumeRequest(run_id=run_id, rounds=rounds or 0, as_continuation=as_continuation)
        reply = self._call(self._stub.Resume, request, LIST_TIMEOUT_S)
        return Resumed(status=reply.status, rounds_done=reply.rounds_done, rounds=reply.rounds)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, method: Callable[..., Reply], request: object, timeout_s: float | None = None) -> Reply:
        try:
            return method(request, metadata=self._metadata, timeout=timeout_s or self._timeout_s)
        except grpc.RpcError as exc:
            raise self._error(exc) from exc

    def _error(self, exc: grpc.RpcError) -> FedloomError:
        return translate_reply(exc, self._server)
