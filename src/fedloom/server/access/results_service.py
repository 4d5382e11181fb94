"""The Results service: a run's files, its events, its end and its continuation, for its owner and administrators."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc

from fedloom.core.errors import UsageError
from fedloom.proto.v1 import results_pb2 as pb
from fedloom.proto.v1.results_pb2_grpc import ResultsServicer
from fedloom.server.access.audit import Audit
from fedloom.server.access.calls import CHUNK_S, Silence
from fedloom.server.access.gate import Caller, Gate
from fedloom.server.access.ownership import require_own_run
from fedloom.server.access.public_text import public_value
from fedloom.server.access.run_results import KINDS, RunResults
from fedloom.server.access.status import answering
from fedloom.server.access.submission import Submissions
from fedloom.server.run_queue import RunQueue
from fedloom.server.run_views import Resumption


class ResultsService(ResultsServicer):
    """Calls about one run.

    Args:
        runs: the server's.
        gate: authorises callers.
        audit: gets a line for each call.
        silence: ends downloads that are not read.
        submissions: counts resumed runs.
    """

    def __init__(self, runs: RunQueue, gate: Gate, audit: Audit, silence: Silence, submissions: Submissions) -> None:
        self._runs, self._gate, self._audit, self._silence = runs, gate, audit, silence
        self._submissions = submissions
        self._results = RunResults()

    def Files(self, request: pb.FilesRequest, context: grpc.ServicerContext) -> pb.FilesReply:
        with answering(context):
            self._admit(context, "Results/Files", request.run_id)
            unknown = sorted(set(request.kinds) - set(KINDS))
            if unknown:
                raise UsageError(f"kinds: expected some of {', '.join(KINDS)}, got {unknown[0][:80]!r}")
            row = self._runs.state(request.run_id)
            folder = self._runs.folder_of(request.run_id)
            listing = self._results.files(folder, row.status, request.kinds)
            return pb.FilesReply(
                files=[
                    pb.RunFile(name=each.name, kind=each.kind, size=each.size, sha256=each.sha256, length=each.length)
                    for each in listing.files
                ],
                status=row.status,
                rounds_done=row.rounds_done,
                rounds=row.rounds,
                model_round=listing.model_round,
            )

    def Fetch(self, request: pb.FetchRequest, context: grpc.ServicerContext) -> Iterator[pb.FetchReply]:
        with answering(context):
            caller = self._admit(context, "Results/Fetch", request.run_id)
            folder = self._runs.folder_of(request.run_id)
            self._results.require_file(folder, request.name, request.length)
            self._audit.notice("fetched", caller.name, context.peer(), run=request.run_id, file=request.name[:80])
            chunks = self._results.read(folder, request.name, request.length, request.offset)
            for chunk in self._silence.taken(chunks, CHUNK_S, context):
                self._gate.check(caller)
                yield pb.FetchReply(data=chunk)

    def Logs(self, request: pb.LogsRequest, context: grpc.ServicerContext) -> Iterator[pb.LogsReply]:
        with answering(context):
            caller = self._admit(context, "Results/Logs", request.run_id)
            self._audit.notice("logs", caller.name, context.peer(), run=request.run_id)
            known = self._runs.settings_text(request.run_id)
            for event in self._silence.taken(iter(self._runs.store(request.run_id).events()), CHUNK_S, context):
                self._gate.check(caller)
                yield pb.LogsReply(event_json=json.dumps(public_value(event, known)))

    def Delete(self, request: pb.DeleteRequest, context: grpc.ServicerContext) -> pb.DeleteReply:
        with answering(context):
            caller = self._admit(context, "Results/Delete", request.run_id)
            status = self._runs.delete(request.run_id)
            self._audit.record("deleted", caller.name, context.peer(), run=request.run_id, status=status)
            return pb.DeleteReply(status=status)

    def Resume(self, request: pb.ResumeRequest, context: grpc.ServicerContext) -> pb.ResumeReply:
        with answering(context):
            caller = self._admit(context, "Results/Resume", request.run_id)
            self._submissions.admit_again(caller, self._runs.folder_of(request.run_id))
            wanted = Resumption(rounds=request.rounds or None, as_continuation=request.as_continuation)
            before = self._runs.resume(request.run_id, wanted)
            after = self._runs.state(request.run_id)
            self._audit.record(
                "resumed", caller.name, context.peer(), run=request.run_id, status=before, rounds=after.rounds
            )
            return pb.ResumeReply(status=before, rounds_done=after.rounds_done, rounds=after.rounds)

    def _admit(self, context: grpc.ServicerContext, call: str, run_id: str) -> Caller:
        caller = self._gate.admit(context, call)
        require_own_run(self._runs, caller, run_id)
        return caller
