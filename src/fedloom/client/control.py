"""Calls to a server's Control service: submit, list, watch and stop runs, list nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self, TypeVar

import grpc

from fedloom.client.link import connect, translate_reply
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError
from fedloom.core.identity import Identity
from fedloom.core.provenance import SubmittedCode
from fedloom.core.records import Info, JsonObject
from fedloom.proto.v1 import control_pb2 as pb
from fedloom.proto.v1.control_pb2_grpc import ControlStub

Reply = TypeVar("Reply")
_SUBMIT_S = 60.0
"""Seconds to wait for a submission, for which the server imports the plug-ins of the experiment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """One run of a server."""

    run_id: str
    name: str
    status: str
    """`queued`, `running`, `done`, `failed` or `interrupted`."""
    rounds_done: int
    rounds: int
    error: str
    owner: str = ""
    """The submitter; empty on a server without members."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRow:
    """One node of a server."""

    node: str
    state: str
    """`online`, `busy` or `lost`."""
    facts: Info
    wire_bytes_down: int
    wire_bytes_up: int
    groups_done: int
    last_seen_s: float
    """Seconds since its last message."""
    labels: dict[str, str] = field(default_factory=dict)


class ControlClient:
    """A person's connection to a server.

    Args:
        server: `host:port`.
        token: the server's shared secret; empty if it has none.
        identity: of the person; None on a server without members.
        timeout_s: seconds to wait for a response.
    """

    def __init__(
        self, server: str, token: str = "", *, identity: Identity | None = None, timeout_s: float = 10.0
    ) -> None:
        self._server, self._timeout_s = server, timeout_s
        self._is_admin = identity is None or identity.role == "admin"
        self._metadata = (("fedloom-token", token),) if token else ()
        self._channel = connect(server, identity)
        self._stub = ControlStub(self._channel)

    def submit(
        self,
        experiment: Experiment,
        say: Callable[[str], None] = lambda note: None,
        code: SubmittedCode | None = None,
    ) -> str:
        """Queue an experiment; returns the run's id.

        The server checks it completely. It is rejected if every connected node that would do it refuses it; where none
        is connected, it waits.

        Files and folders of code are named by name and SHA-256. An administrator adds their paths, where the server may
        have files of that content that it does not allow to users. A path that is not on this machine is the server's.

        Args:
            experiment: what to run.
            say: takes sentences for the submitter: settings without effect, what the run waits for, who refuses it.
            code: the code it is submitted from, for the run's provenance.
        """
        values = experiment.with_code_names(paths=self._is_admin, missing=True)
        code_json = "" if code is None else code.model_dump_json()
        request = pb.SubmitRequest(experiment_json=json.dumps(values), code_json=code_json)
        reply = self._call(self._stub.Submit, request, max(_SUBMIT_S, self._timeout_s))
        for note in reply.notes:
            say(note)
        return str(reply.run_id)

    def runs(self) -> list[RunRow]:
        """Return all runs of the server, oldest first."""
        reply = self._call(self._stub.ListRuns, pb.ListRunsRequest())
        return [
            RunRow(
                run_id=row.run_id,
                name=row.name,
                status=row.status,
                rounds_done=row.rounds_done,
                rounds=row.rounds,
                error=row.error,
                owner=row.owner,
            )
            for row in reply.runs
        ]

    def watch(self, run_id: str) -> Iterator[JsonObject]:
        """Yield the run's events, past and future, as in `events.jsonl`; ends with the run."""
        try:
            for reply in self._stub.Watch(pb.WatchRequest(run_id=run_id), metadata=self._metadata):
                yield json.loads(reply.event_json)
        except grpc.RpcError as exc:
            raise self._error(exc) from exc

    def stop(self, run_id: str) -> str:
        """Stop a run; returns the status it had."""
        return str(self._call(self._stub.Stop, pb.StopRequest(run_id=run_id)).status)

    def nodes(self) -> list[NodeRow]:
        """Return all nodes the server knows."""
        reply = self._call(self._stub.ListNodes, pb.ListNodesRequest())
        return [
            NodeRow(
                node=row.node,
                state=row.state,
                facts=json.loads(row.facts_json),
                wire_bytes_down=row.wire_bytes_down,
                wire_bytes_up=row.wire_bytes_up,
                groups_done=row.groups_done,
                last_seen_s=row.last_seen_s,
                labels=dict(row.labels),
            )
            for row in reply.nodes
        ]

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
