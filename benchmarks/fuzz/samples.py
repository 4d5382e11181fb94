"""Sound messages of every call, to be broken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message

from fedloom.core import frames
from fedloom.core.accumulators import RunningMean
from fedloom.core.identity import certificate_request, make_key
from fedloom.core.messages import PROTOCOL, FromAgent, GroupKey, GroupResult, Heartbeat, Hello, PayloadRef, Refusal
from fedloom.core.records import MODEL, ClientFailure, ClientReport, Mean, Record, Update
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import control_pb2 as control_pb
from fedloom.proto.v1 import enroll_pb2 as enroll_pb
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1 import results_pb2 as results_pb

RUN, NODE, PASSING, SESSION = "standing", "fuzz", "passing", "only"
"""The run that is open, the node whose calls are broken, the one whose introductions are, and their session."""
HONEST = "honest"
"""A node that is there all along."""
VICTIMS = ("victim", "victim-1", "spare")
"""Members that are there to be labelled and revoked."""

Samples = Mapping[str, Sequence[Message]]
"""`Service/Method` -> sound messages of it."""


def model() -> Record:
    """The model of the open exchange."""
    return Record({MODEL: {"w": np.ones(8, np.float32)}})


def frame() -> bytes:
    """A sound sum of it."""
    mean = RunningMean()
    mean.add(Update(num_examples=1, groups=model().groups), 1.0, 0)
    return bytes(frames.encode(mean.record()))


def experiment() -> dict[str, Any]:
    """A sound experiment."""
    return {
        "name": "of the fuzz", "rounds": 1, "clients": 2, "cohort": 1, "seed": 1, "strategy": {"name": "fedavg"},
        "workload": {"name": "image_classification", "training": {"max_steps": 1}},
        "round": {"quorum_fraction": 1.0}, "fleet": {"labels": {"site": "north"}}, "selection": {"name": "uniform"},
    }  # fmt: skip


def at_work(run_id: str) -> Samples:
    """Messages of Fleet, Control and Results; `run_id` names another user's run, or none."""
    data, key = frame(), GroupKey(RUN, 1, 0, 0)
    report = ClientReport(client=0, num_examples=1, seconds=0.1, metrics={"loss": Mean(1.0, 1.0)}, info={"x": [1]})
    failure = ClientFailure(client=0, round=1, stage="train", error="E", message="m", traceback="t", node="n")
    inline = PayloadRef(size=len(data), inline=data)
    named = PayloadRef(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    reported: Sequence[FromAgent] = [
        GroupResult(key=key, total=inline, reports=(report,), states={0: inline}, busy_s=1.0),
        GroupResult(key=key, total=named, reports=(report,)),
        GroupResult(key=key._replace(run_id="another", round=3), total=None, failures=(failure,)),
        Heartbeat(groups=(key, key._replace(group=1)), missing_runs=(RUN,)),
        Refusal(key=key, kind="hours", reason="not now", retry_s=0.1),
    ]
    head = pb.UploadRequest(sha256=named.sha256, size=len(data))
    return {
        "Fleet/Work": [pb.FromAgentBatch(messages=[codec.from_agent_message(message)]) for message in reported],
        "Fleet/Register": [codec.hello_message(Hello(node=PASSING, session="s", facts={"cores": 2}))],
        "Fleet/UploadOffset": [head],
        "Fleet/Upload": [head],
        "Fleet/Download": [pb.DownloadRequest(sha256=named.sha256, offset=1)],
        "Control/Submit": [control_pb.SubmitRequest(experiment_json=json.dumps(experiment()))],
        "Control/ListRuns": [control_pb.ListRunsRequest()],
        "Control/Watch": [control_pb.WatchRequest(run_id=run_id)],
        "Control/Stop": [control_pb.StopRequest(run_id=run_id)],
        "Control/ListNodes": [control_pb.ListNodesRequest()],
        "Results/Files": [results_pb.FilesRequest(run_id=run_id, kinds=["model", "report"])],
        "Results/Fetch": [results_pb.FetchRequest(run_id=run_id, name="rounds.jsonl", length=10, offset=5)],
        "Results/Logs": [results_pb.LogsRequest(run_id=run_id)],
        "Results/Delete": [results_pb.DeleteRequest(run_id=run_id)],
        "Results/Resume": [results_pb.ResumeRequest(run_id=run_id, rounds=3, as_continuation=True)],
    }


def of_members() -> Samples:
    """Messages of Enroll, Credentials and Admin; those of Join have no secret yet (`tokens.Tokens` puts one in)."""
    tokens = [
        enroll_pb.CreateTokenRequest(name=name, role=role, ttl_s=600.0, uses=1, labels={"site": "north"})
        for name in VICTIMS
        for role in ("node", "user", "admin")
    ]
    tokens += [
        enroll_pb.CreateTokenRequest(name="several", role="node", ttl_s=3600.0, uses=3),
        enroll_pb.CreateTokenRequest(name="x" * 64, role="node", ttl_s=60.0, uses=1),
        enroll_pb.CreateTokenRequest(name="y" * 56, role="user", ttl_s=2592000.0, uses=10_000),
        enroll_pb.CreateTokenRequest(name="victim", role="node", ttl_s=0.001, uses=1),
    ]
    labels = [enroll_pb.LabelRequest(name=name, set={"a": "1", "b": "2"}, remove=["site"]) for name in VICTIMS]
    return {
        "Admin/CreateToken": tokens,
        "Enroll/Authority": [enroll_pb.AuthorityRequest()],
        "Enroll/Join": [enroll_pb.JoinRequest(protocol=PROTOCOL)],
        "Credentials/Renew": [enroll_pb.RenewRequest(csr_pem=certificate_request(make_key()))],
        "Credentials/Confirm": [enroll_pb.ConfirmRequest()],
        "Admin/ListMembers": [enroll_pb.ListMembersRequest()],
        "Admin/ListTokens": [enroll_pb.ListTokensRequest()],
        "Admin/RevokeToken": [enroll_pb.RevokeTokenRequest(id="0123456789ab")],
        "Admin/Audit": [enroll_pb.AuditRequest(last=10)],
        "Admin/Revoke": [enroll_pb.RevokeRequest(name=name) for name in VICTIMS],
        "Admin/Label": labels,
    }
