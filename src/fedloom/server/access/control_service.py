"""The gRPC service of users and their tools: submit, list, watch and stop runs; list nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc

from fedloom.core.config import Experiment
from fedloom.core.errors import BadMessage, LimitExceeded
from fedloom.core.provenance import submitted_code
from fedloom.core.records import JsonObject
from fedloom.proto.v1 import control_pb2 as control_pb
from fedloom.proto.v1.control_pb2_grpc import ControlServicer
from fedloom.server.access.audit import Audit
from fedloom.server.access.gate import Gate
from fedloom.server.access.ownership import require_own_run
from fedloom.server.access.public_text import public_value, without_paths
from fedloom.server.access.reception import receive
from fedloom.server.access.status import answering
from fedloom.server.access.submission import Submissions
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.run_queue import RunQueue
from fedloom.server.run_views import Owner

MAX_EXPERIMENT = 1 << 20
"""Characters of an experiment as JSON: each of its texts is checked, and it is sent to every node that serves it."""


class ControlService(ControlServicer):
    """Calls of users and their tools."""

    def __init__(
        self,
        coordinator: Coordinator,
        runs: RunQueue,
        gate: Gate,
        audit: Audit,
        submissions: Submissions,
    ) -> None:
        self._coordinator, self._runs, self._gate = coordinator, runs, gate
        self._audit, self._submissions = audit, submissions

    def Submit(self, request: control_pb.SubmitRequest, context: grpc.ServicerContext) -> control_pb.SubmitReply:
        with answering(context, request.experiment_json):
            caller = self._gate.admit(context, "Control/Submit")
            if len(request.experiment_json) > MAX_EXPERIMENT:
                raise LimitExceeded(
                    f"submit: expected at most {MAX_EXPERIMENT} characters of an experiment as JSON, got "
                    f"{len(request.experiment_json)}; put lists of that length into files of data"
                )
            try:
                values = json.loads(request.experiment_json)
                json.dumps(values, ensure_ascii=False).encode()  # an escape may be half a character, which is no text
            except (ValueError, RecursionError) as exc:
                raise BadMessage(f"submit: the experiment is not JSON: {exc}") from exc
            if not isinstance(values, dict):
                raise BadMessage(f"submit: expected the experiment as a JSON object, got a {type(values).__name__}")
            code = submitted_code(request.code_json)
            values = self._submissions.admit(caller, values)
            owner, notes = Owner(caller.id, caller.name, caller.role if caller.id else ""), list[str]()

            def admit(experiment: Experiment) -> None:
                self._submissions.share(experiment)
                notes.extend(receive(self._coordinator, experiment, owner))

            run_id = self._runs.submit(values, owner, admit, code)
            self._audit.record("submitted", caller.name, context.peer(), run=run_id)
            known = request.experiment_json
            return control_pb.SubmitReply(run_id=run_id, notes=[without_paths(note, known) for note in notes])

    def ListRuns(self, request: control_pb.ListRunsRequest, context: grpc.ServicerContext) -> control_pb.ListRunsReply:
        with answering(context):
            caller = self._gate.admit(context, "Control/ListRuns")
            rows = self._runs.rows() if caller.role == "admin" else self._runs.rows(caller.id)
            return control_pb.ListRunsReply(runs=[control_pb.RunRow(**_public_row(row)) for row in rows])

    def Watch(self, request: control_pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[control_pb.WatchReply]:
        with answering(context):
            caller = self._gate.admit(context, "Control/Watch")
            require_own_run(self._runs, caller, request.run_id)
            known = self._runs.settings_text(request.run_id)
            self._audit.notice("watched", caller.name, context.peer(), run=request.run_id)
            with self._runs.watch(request.run_id) as events:
                if not context.add_callback(events.close):
                    events.close()
                for event in events:
                    self._gate.check(caller)
                    yield control_pb.WatchReply(event_json=json.dumps(public_value(event, known)))

    def Stop(self, request: control_pb.StopRequest, context: grpc.ServicerContext) -> control_pb.StopReply:
        with answering(context):
            caller = self._gate.admit(context, "Control/Stop")
            require_own_run(self._runs, caller, request.run_id)
            status = self._runs.stop(request.run_id)
            self._audit.notice("stopped", caller.name, context.peer(), run=request.run_id, status=status)
            return control_pb.StopReply(status=status)

    def ListNodes(
        self, request: control_pb.ListNodesRequest, context: grpc.ServicerContext
    ) -> control_pb.ListNodesReply:
        with answering(context):
            self._gate.admit(context, "Control/ListNodes")
            return control_pb.ListNodesReply(nodes=[control_pb.NodeRow(**row) for row in self._coordinator.rows()])


def _public_row(row: JsonObject) -> JsonObject:
    """Return a run's row without paths of the server."""
    return {**row, "error": without_paths(str(row["error"]))}
