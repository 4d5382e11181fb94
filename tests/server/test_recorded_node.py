"""Every byte that joined nodes hand to gRPC in recorded runs: fields of the list on the page on trust, and no data.

Sites with policies join a server with members, describe their data, agree, train, are evaluated, fine-tune, and share
local models; another run is inquired about and refused.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from members import Members, members
from PIL import Image
from policies import guard
from site_fleet import OWN_ROWS

from fedloom.client import grpc_channel, link
from fedloom.client.agent import Agent
from fedloom.client.facts import WORDS
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.setup import NodeSetup
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.protocols import WorkloadInfo
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.leaving import sent_fields
from fedloom.server.fleet.planned import RunFacts
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.testing.fleet import fleet_access, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "trust.md"
PATIENT, FILE, LISTED = "Patient 7 of 12 Mill Lane", "scan-of-ann-miller", "cat"
REQUESTS: dict[str, Any] = {
    "Register": pb.RegisterRequest, "Work": pb.FromAgentBatch, "UploadOffset": pb.UploadRequest,
    "Download": pb.DownloadRequest,
}  # fmt: skip


class Recorder:
    """Makes connections that note what is sent on them, before it is encrypted."""

    def __init__(self, connect: Callable[..., grpc.Channel]) -> None:
        self._connect = connect
        self.sent: list[tuple[str, bytes]] = []
        self.headers: set[str] = set()

    def connect(self, *arguments: Any, **more: Any) -> Any:
        return _Channel(self._connect(*arguments, **more), self)


class _Channel:
    def __init__(self, channel: grpc.Channel, recorder: Recorder) -> None:
        self._channel, self._recorder = channel, recorder

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._channel, name)
        return self._recorded(found) if name.startswith(("unary_", "stream_")) else found

    def _recorded(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def method(path: str, request_serializer: Any = None, response_deserializer: Any = None, **more: Any) -> Any:
            def serialised(message: Any) -> bytes:
                data = bytes(message if request_serializer is None else request_serializer(message))
                self._recorder.sent.append((path.rpartition("/")[2], data))
                return data

            call = make(path, serialised, response_deserializer, **more)

            def called(*arguments: Any, **given: Any) -> Any:
                self._recorder.headers |= {key for key, _ in given.get("metadata") or ()}
                return call(*arguments, **given)

            return called

        return method


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder(link.connect)
    monkeypatch.setattr(grpc_channel, "connect", made.connect)
    return made


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path / "server") as fleet:
        yield fleet


class Node:
    """A joined agent with a policy, in a thread."""

    def __init__(self, fleet: Members, name: str, folder: Path, policy: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.identity = fleet.joined(name)
        setup = NodeSetup(guard=guard(folder, **policy), states=folder / "states")
        self._agent = Agent(GrpcChannel(fleet.address, identity=lambda: self.identity), name, setup)
        self._thread = threading.Thread(target=self._agent.run, name=name)
        self._thread.start()
        wait_until(lambda: name in fleet.server.coordinator.present({}), 20, f"node {name}")

    def close(self) -> None:
        self._agent.stop()
        self._thread.join()


def pictures(folder: Path, seed: int) -> None:
    """A folder of each class, with names of files that tell whose pictures they are."""
    rng = np.random.default_rng(seed)
    for name in (LISTED, PATIENT):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 255, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{FILE}-{number}.png")


def table(folder: Path, seed: int) -> np.ndarray[Any, Any]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    x = rng.normal(3.0, 2.0, (40, 3))
    np.savez(folder / "rows.npz", x=x, y=np.arange(40) % 2)
    return np.asarray(x)


def run(fleet: Members, values: dict[str, Any], run_id: str) -> Outcome:
    experiment = Experiment.parse(values)
    store = MemoryRunStore(run_id)
    store.begin(experiment)
    access = replace(fleet_access(fleet.server.coordinator, patience_s=20), code_names=True, submitter=("ann", "user"))
    return run_session(experiment, store, access, (), stop=threading.Event())


def forms(secret: bytes) -> set[bytes]:
    """A secret as it might be written: itself, its hexadecimal digits, base64 of any alignment."""
    found = {secret, secret.hex().encode()}
    for shift in range(3):
        found.add(base64.b64encode(bytes(shift) + secret)[4:-4])
    return {each for each in found if len(each) >= 6}


def named(message: Any, found: set[tuple[str, str]]) -> None:
    """Collect the fields of a message that are set, at any depth; none may be unknown."""
    assert len(UnknownFieldSet(message)) == 0
    for field, value in message.ListFields():
        found.add((message.DESCRIPTOR.name, field.name))
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = value.values() if field.message_type.fields_by_name["value"].message_type is not None else ()
        else:
            inner = value if field.is_repeated else [value]
        for each in inner:
            named(each, found)


def described(sent: Sequence[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Descriptions of data among the sums that were sent in messages."""
    found = []
    for method, data in sent:
        if method == "Work":
            for message in pb.FromAgentBatch.FromString(data).messages:
                if message.result.total.inline:
                    info = json.dumps(frames.decode(message.result.total.inline).info)
                    found += [each for each in _tables(json.loads(info)) if "label_counts" in each]
    return found


def _tables(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _tables(inner)


@pytest.mark.slow
def test_nothing_of_the_data_is_in_the_bytes_a_node_sends(recorder: Recorder, fleet: Members, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    x = {name: table(tmp_path / name / "rows", seed) for seed, name in enumerate(("north", "south"))}
    nodes = []
    for seed, name in enumerate(("north", "south")):
        pictures(tmp_path / name / "pictures", seed)
        workloads = {
            OWN_ROWS: {"data": str(tmp_path / name / "rows")},
            "image_classification": {"data": str(tmp_path / name / "pictures"), "classes": [LISTED]},
        }
        policy = {"workloads": workloads, "code": [OWN_ROWS], "share_local_model": True}
        nodes.append(Node(fleet, name, tmp_path / name / "identity", policy))
    head = {"rounds": 2, "clients": "nodes", "strategy": "fedavg", "round": {"min_sites": 2}}
    rows = {**head, "name": "rows", "workload": {"name": OWN_ROWS}, "evaluation": {"fine_tune": 1}}
    images = {"source": "images", "folder": "$DATA", "mean": [0.5], "std": [0.5]}
    seen = {
        **head, "name": "images", "rounds": 1,
        "workload": {"name": "image_classification", "model": {"name": "mlp", "hidden": [4]}, "channels": 1,
                     "resize": 8, "data": images},
    }  # fmt: skip
    try:
        outcomes = [run(fleet, values, str(values["name"])) for values in (rows, seen)]
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert outcomes[0].history[-1].sections["cross_sites"]["models"] == ["global", "north", "south"]
        union = {**seen, "workload": {**seen["workload"], "data": {**images, "classes": "union"}}}  # type: ignore[dict-item]
        assert "the names of 1 of its 2 classes" in str(run(fleet, union, "union").error)
        refused = RunFacts.of("x", Experiment.parse({**seen, "workload": "text_classification"}), ("ann", "user"))
        verdicts = fleet.server.coordinator.inquire(refused)
        assert {verdict.kind for verdict in verdicts.values() if verdict is not None} == {"workload"}
    finally:
        for node in nodes:
            node.close()
    _check_fields(recorder)
    _check_descriptions(recorder)
    whole = b"\0".join(data for _, data in recorder.sent)
    assert LISTED.encode() in whole and b"sha256:" in whole, "the control: what the policy lists is seen"
    keys = [line for node in nodes for line in node.identity.key.splitlines() if b"-----" not in line and len(line) > 8]
    values = [row.tobytes() for each in x.values() for row in each]
    texts = [
        PATIENT,
        FILE,
        str(tmp_path),
        "rows.npz",
        *(repr(float(v)) for each in x.values() for v in each.ravel()[:30]),
    ]
    for secret in (*(text.encode() for text in texts), *keys, *values, *_pixels(tmp_path)):
        assert not [form for form in forms(secret) if form in whole], secret[:60]


def _pixels(folder: Path) -> list[bytes]:
    """The files of the pictures, a part of each."""
    return [path.read_bytes()[-40:] for path in sorted(folder.rglob("*.png"))]


def _check_fields(recorder: Recorder) -> None:
    listed, found = {(sent.message, sent.field) for sent in sent_fields()}, set[tuple[str, str]]()
    facts = set[str]()
    for method, data in recorder.sent:
        if method in REQUESTS:
            message: Any = REQUESTS[method].FromString(data)
            named(message, found)
            facts |= set(json.loads(message.facts_json)) if method == "Register" else set()
    assert found <= listed and facts == WORDS.keys()
    assert recorder.headers <= {"fedloom-node", "fedloom-session"}
    assert {("FromAgent", "verdict"), ("GroupResult", "total"), ("Report", "metrics"), ("Heartbeat", "held")} <= found
    assert {method for method, _ in recorder.sent} <= {*REQUESTS, "Upload"}


def _check_descriptions(recorder: Recorder) -> None:
    page = PAGE.read_text(encoding="utf-8").partition("| `data` |")[2].partition("\n")[0]
    tables = described(recorder.sent)
    assert len(tables) >= 6, "each site describes itself to each run, and one makes the initial model"
    for each in tables:
        assert each.keys() == {field.name for field in fields(WorkloadInfo)}
        assert not [key for key in each["data"] if f"`{key}`" not in page], "every fact of the data is on the page"
        assert PATIENT not in each["label_names"]
