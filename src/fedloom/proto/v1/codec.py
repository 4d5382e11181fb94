"""Converts between values and wire messages: the only module besides service and channel that uses generated types.

Decoding checks what the types cannot: JSON that parses to an object, counts within limits, known kinds. Anything else
is a `BadMessage` that says which field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from fedloom.core.errors import BadMessage
from fedloom.core.messages import (
    MAX_INFO,
    MAX_METRICS,
    MAX_NAME,
    MAX_NOTICES,
    MAX_TEXT,
    Ack,
    Cancel,
    FromAgent,
    Goodbye,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    Inquiry,
    PayloadRef,
    Refusal,
    RunOver,
    RunSpec,
    ToAgent,
    Verdict,
    Welcome,
)
from fedloom.core.records import CONTENTS, ClientFailure, ClientReport, Contents, Info, Job, Mean
from fedloom.proto.v1 import fleet_pb2 as pb

MAX_LISTED = 4096
"""Limit of groups in one heartbeat."""
MAX_FACTS = 4 << 10
"""Characters of a node's description of itself."""

MAX_REASON = 2000
"""Characters of the reason of a refusal or a goodbye, which the log has each time."""


def to_agent_message(message: ToAgent) -> pb.ToAgent:
    """Encode a server's message for the wire."""
    match message:
        case Group():
            return pb.ToAgent(group=_group(message))
        case Ack():
            return pb.ToAgent(ack=pb.Ack(key=_key(message.key), status=message.status, message=message.message))
        case RunSpec():
            return pb.ToAgent(run=_run(message))
        case Inquiry():
            return pb.ToAgent(inquiry=pb.Inquiry(id=message.id, run=_run(message.spec)))
        case Cancel():
            return pb.ToAgent(cancel=pb.Cancel(run_id=message.run_id, round=message.round, exchange=message.exchange))
        case Goodbye():
            return pb.ToAgent(goodbye=pb.Goodbye(reason=message.reason, come_back=message.come_back))
        case RunOver():
            return pb.ToAgent(over=pb.RunOver(run_id=message.run_id, resumable=message.resumable))


def read_to_agent(message: pb.ToAgent) -> ToAgent:
    """Decode a server's message from the wire."""
    match message.WhichOneof("body"):
        case "group":
            return _read_group(message.group)
        case "ack":
            return Ack(key=_read_key(message.ack.key), status=message.ack.status, message=message.ack.message)
        case "run":
            return _read_run(message.run)
        case "inquiry":
            return Inquiry(id=message.inquiry.id, spec=_read_run(message.inquiry.run))
        case "cancel":
            return Cancel(run_id=message.cancel.run_id, round=message.cancel.round, exchange=message.cancel.exchange)
        case "goodbye":
            return Goodbye(reason=message.goodbye.reason, come_back=message.goodbye.come_back)
        case "over":
            return RunOver(run_id=message.over.run_id, resumable=message.over.resumable)
        case other:
            raise BadMessage(f"the server sent a message of kind {other!r}; is it newer than this agent?")


def from_agent_message(message: FromAgent) -> pb.FromAgent:
    """Encode an agent's message for the wire."""
    match message:
        case GroupResult():
            return pb.FromAgent(result=_result(message))
        case Heartbeat():
            listed = [_key(key) for key in message.groups]
            return pb.FromAgent(heartbeat=pb.Heartbeat(held=listed, missing_runs=message.missing_runs))
        case Goodbye():
            return pb.FromAgent(goodbye=pb.Goodbye(reason=message.reason))
        case Refusal():
            key, reason = _key(message.key), message.reason[:MAX_TEXT]
            return pb.FromAgent(refusal=pb.Refusal(key=key, kind=message.kind, reason=reason, retry_s=message.retry_s))
        case Verdict():
            text = message.reason[:MAX_TEXT]
            verdict = pb.Verdict(id=message.id, kind=message.kind, reason=text, retry_s=message.retry_s)
            return pb.FromAgent(verdict=verdict)


def read_from_agent(message: pb.FromAgent, node: str) -> FromAgent:
    """Decode an agent's message from the wire; `node` is the owner of its stream."""
    match message.WhichOneof("body"):
        case "result":
            return _read_result(message.result, node)
        case "heartbeat":
            if len(message.heartbeat.held) > MAX_LISTED or len(message.heartbeat.missing_runs) > MAX_LISTED:
                raise BadMessage(f"heartbeat: expected at most {MAX_LISTED} groups and runs, got more")
            groups = tuple(_read_key(key) for key in message.heartbeat.held)
            return Heartbeat(groups=groups, missing_runs=tuple(message.heartbeat.missing_runs))
        case "goodbye":
            return Goodbye(reason=message.goodbye.reason[:MAX_REASON])
        case "refusal":
            return Refusal(
                key=_read_key(message.refusal.key),
                kind=_name(message.refusal.kind, "refusal.kind"),
                reason=message.refusal.reason[:MAX_REASON],
                retry_s=_number(message.refusal.retry_s, "refusal.retry_s"),
            )
        case "verdict":
            return Verdict(
                id=_name(message.verdict.id, "verdict.id"),
                kind=message.verdict.kind[:MAX_NAME],
                reason=message.verdict.reason[:MAX_REASON],
                retry_s=_number(message.verdict.retry_s, "verdict.retry_s"),
            )
        case other:
            raise BadMessage(f"node {node!r} sent a message of kind {other!r}; is the agent newer than this server?")


def _run(spec: RunSpec) -> pb.RunSpec:
    return pb.RunSpec(
        run_id=spec.run_id,
        experiment_json=_dump(spec.experiment),
        submitter_name=spec.submitter_name,
        submitter_role=spec.submitter_role,
        data_json=_dump(spec.data) if spec.data else "",
    )


def _read_run(message: pb.RunSpec) -> RunSpec:
    return RunSpec(
        run_id=message.run_id,
        experiment=_load(message.experiment_json, "experiment"),
        submitter_name=message.submitter_name,
        submitter_role=message.submitter_role,
        data=_load(message.data_json, "data") if message.data_json else {},
    )


def read_result_key(message: pb.GroupResult) -> GroupKey:
    """Return the group of a result whose other parts may be unreadable."""
    return _read_key(message.key)


def hello_message(hello: Hello) -> pb.RegisterRequest:
    """Encode a registration for the wire."""
    return pb.RegisterRequest(
        protocol=hello.protocol, node=hello.node, session=hello.session, facts_json=_dump(hello.facts)
    )


def read_hello(message: pb.RegisterRequest) -> Hello:
    """Decode a registration from the wire."""
    if len(message.facts_json) > MAX_FACTS:
        raise BadMessage(f"facts: expected at most {MAX_FACTS} characters, got {len(message.facts_json)}")
    return Hello(
        node=_name(message.node, "node"),
        session=_name(message.session, "session"),
        protocol=message.protocol,
        facts=_load(message.facts_json, "facts"),
    )


def welcome_message(welcome: Welcome) -> pb.RegisterReply:
    """Encode a server's reply to a registration for the wire."""
    return pb.RegisterReply(
        heartbeat_s=welcome.heartbeat_s,
        max_payload_bytes=welcome.max_payload_bytes,
        chunk_bytes=welcome.chunk_bytes,
        depot_path=welcome.depot_path,
        depot_nonce=welcome.depot_nonce,
    )


def read_welcome(message: pb.RegisterReply) -> Welcome:
    """Decode a server's reply to a registration from the wire."""
    return Welcome(
        heartbeat_s=message.heartbeat_s,
        max_payload_bytes=message.max_payload_bytes,
        chunk_bytes=message.chunk_bytes,
        depot_path=message.depot_path,
        depot_nonce=message.depot_nonce,
    )


def _group(group: Group) -> pb.Group:
    message = own_part(group)
    message.MergeFrom(common_part(group))
    return message


def own_part(group: Group) -> pb.Group:
    """Encode what a group does not share with the others of its exchange."""
    return pb.Group(
        key=_key(group.key),
        jobs=[
            pb.Job(
                client=job.client,
                kind=job.kind,
                inputs=job.inputs,
                knobs_json=_dump(job.knobs),
                cached_inputs=job.cached_inputs,
                weight=job.weight,
            )
            for job in group.jobs
        ],
        states={client: _payload(ref) for client, ref in group.states.items()},
    )


def common_part(group: Group) -> pb.Group:
    """Encode what a group shares with those of its exchange that have equal inputs."""
    return pb.Group(
        inputs={name: _payload(ref) for name, ref in group.inputs.items()},
        knobs_json=_dump(group.knobs),
        accumulator=group.accumulator,
        rules=group.rules,
        updates_json=_dump_contents(group.updates),
        measure=group.measure or "",
        park=group.park,
        collects=group.collects,
        clients=group.clients,
    )


def _read_group(message: pb.Group) -> Group:
    key = _read_key(message.key)
    jobs = tuple(
        Job(
            round=key.round,
            client=job.client,
            kind=job.kind,
            inputs=tuple(job.inputs),
            knobs=_load(job.knobs_json, "job.knobs"),
            cached_inputs=tuple(job.cached_inputs),
            weight=_number(job.weight, "job.weight"),
        )
        for job in message.jobs
    )
    return Group(
        key=key,
        jobs=jobs,
        inputs={name: _read_payload(ref) for name, ref in message.inputs.items()},
        knobs=_load(message.knobs_json, "group.knobs"),
        accumulator=message.accumulator,
        rules=tuple(message.rules),
        updates=_read_contents(message.updates_json),
        states={client: _read_payload(ref) for client, ref in message.states.items()},
        measure=message.measure or None,
        park=message.park,
        collects=message.collects if message.HasField("collects") else None,
        clients=message.clients,
    )


_LITERALS: dict[str, Contents] = {json.dumps(literal): literal for literal in CONTENTS}


def _dump_contents(contents: Contents) -> str:
    if isinstance(contents, str):
        return f'"{contents}"'
    return json.dumps({group: sorted(names) for group, names in contents.items()})


def _read_contents(text: str) -> Contents:
    if text in _LITERALS:
        return _LITERALS[text]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadMessage(f"group.updates: expected JSON, got {text[:80]!r}") from exc
    if isinstance(found, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found.values()
    ):
        return {group: frozenset(names) for group, names in found.items()}
    raise BadMessage(f'group.updates: expected "model", "subset", "accumulator" or names by group, got {text[:80]!r}')


def _result(result: GroupResult) -> pb.GroupResult:
    message = pb.GroupResult(
        key=_key(result.key),
        reports=[_report(report) for report in result.reports],
        failures=[
            pb.Failure(
                client=failure.client,
                stage=failure.stage,
                error=failure.error[:MAX_NAME],
                message=failure.message[:MAX_TEXT],
                traceback=failure.traceback[-MAX_TEXT:],
                seconds=failure.seconds,
                bytes_down=failure.bytes_down,
            )
            for failure in result.failures
        ],
        states={client: _payload(ref) for client, ref in result.states.items()},
        busy_s=result.busy_s,
        notices=[notice[:MAX_TEXT] for notice in result.notices[:MAX_NOTICES]],
    )
    if result.total is not None:
        message.total.CopyFrom(_payload(result.total))
    return message


def _read_result(message: pb.GroupResult, node: str) -> GroupResult:
    key = _read_key(message.key)
    failures = tuple(
        ClientFailure(
            client=failure.client,
            round=key.round,
            stage=_name(failure.stage, "failure.stage"),
            error=failure.error[:MAX_NAME],
            message=failure.message[:MAX_TEXT],
            traceback=failure.traceback[-MAX_TEXT:],
            node=node,
            seconds=_number(failure.seconds, "failure.seconds"),
            bytes_down=failure.bytes_down,
        )
        for failure in message.failures
    )
    return GroupResult(
        key=key,
        total=_read_payload(message.total) if message.HasField("total") else None,
        reports=tuple(_read_report(report) for report in message.reports),
        failures=failures,
        states={client: _read_payload(ref) for client, ref in message.states.items()},
        busy_s=_number(message.busy_s, "busy_s"),
        notices=tuple(notice[:MAX_TEXT] for notice in message.notices[:MAX_NOTICES]),
    )


def _report(report: ClientReport) -> pb.Report:
    return pb.Report(
        client=report.client,
        num_examples=report.num_examples,
        seconds=report.seconds,
        metrics=[pb.Metric(name=name, sum=mean.sum, weight=mean.weight) for name, mean in report.metrics.items()],
        info_json=_dump(report.info),
        bytes_down=report.bytes_down,
        bytes_up=report.bytes_up,
        params_down=report.params_down,
        params_up=report.params_up,
        num_trained=report.num_trained,
        num_retrained=report.num_retrained,
    )


def _read_report(message: pb.Report) -> ClientReport:
    metrics, info = message.metrics, message.info_json
    if len(metrics) > MAX_METRICS or len(info) > MAX_INFO:
        raise BadMessage(
            f"report of client {message.client}: expected at most {MAX_METRICS} metrics and {MAX_INFO} characters of "
            f"info, got {len(metrics)} and {len(info)}"
        )
    return ClientReport(
        client=message.client,
        num_examples=message.num_examples,
        seconds=_number(message.seconds, "report.seconds"),
        metrics={_name(metric.name, "metric"): Mean(metric.sum, metric.weight) for metric in metrics},
        info=_load(info, "report.info") if info else {},
        bytes_down=message.bytes_down,
        bytes_up=message.bytes_up,
        params_down=message.params_down,
        params_up=message.params_up,
        num_trained=message.num_trained,
        num_retrained=message.num_retrained,
    )


def _payload(ref: PayloadRef) -> pb.Payload:
    return pb.Payload(size=ref.size, inline=ref.inline, shared=ref.shared, sha256=ref.sha256, pinned=ref.pinned)


def _read_payload(message: pb.Payload) -> PayloadRef:
    if message.inline and len(message.inline) != message.size:
        raise BadMessage(f"payload.inline has {len(message.inline)} bytes, but payload.size is {message.size}")
    return PayloadRef(
        size=message.size,
        inline=message.inline,
        shared=message.shared,
        sha256=message.sha256,
        pinned=message.pinned,
    )


def _key(key: GroupKey) -> pb.GroupKey:
    return pb.GroupKey(run_id=key.run_id, round=key.round, exchange=key.exchange, index=key.group)


def _read_key(message: pb.GroupKey) -> GroupKey:
    return GroupKey(_name(message.run_id, "run_id"), message.round, message.exchange, message.index)


def _dump(info: Mapping[str, Any]) -> str:
    return json.dumps(info, separators=(",", ":")) if info else ""


_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be half a character, which is no text and which no file's name and no message can have."""


def _load(text: str, field: str) -> Info:
    if not text:
        return {}
    try:
        value = json.loads(text)
        if _ESCAPED_HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise BadMessage(f"{field}: not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise BadMessage(f"{field}: expected a JSON object, got a {type(value).__name__}")
    return value


def _name(text: str, field: str) -> str:
    if not 0 < len(text) <= MAX_NAME or not text.isprintable():
        raise BadMessage(f"{field}: expected 1 to {MAX_NAME} printable characters, got {text[:40]!r} ({len(text)})")
    return text


def _number(value: float, field: str) -> float:
    if not math.isfinite(value) or value < 0:
        raise BadMessage(f"{field}: expected a non-negative number, got {value}")
    return value
