"""Downloads of odd names, lengths and offsets of a run of one's own, from a running server: listed files or none."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from members import Members, members

from fedloom.client.control import ControlClient
from fedloom.client.link import connect
from fedloom.core.config import Experiment
from fedloom.core.identity import Identity
from fedloom.proto.v1 import results_pb2 as pb

SECRET = b"the authority's key, or anything else of the server"
NAMES = (
    "run.json", "experiment.toml", "plugins", "plugins/", "plugins/.", "plugins//out/secret", "plugins/out/secret",
    "plugins/out", "plugins/link.py", "plugins/../../secret", "plugins/none.py", "plugins/a.py/b", "plugins/\0",
    "plugins/" + "x" * 5000, "plugins/" + "d/" * 3000 + "x", "../../authority/authority-key.pem", "/etc/passwd",
    "model/model-round-../../x.safetensors", "model/model-round-1.safetensors", "model/../run.json", "",
    "checkpoints/round-1.safetensors", "checkpoints/../run.json", "answers/1.safetensors", "clients/1.safetensors",
    "./run.json", "RUN.JSON", "run.json\0", "run.json/", "rosters.jsonl", "summary.json", "lock", "~", "é" * 300,
)  # fmt: skip
NUMBERS = (0, 1, 10, 2**31, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def own(fleet: Members, tmp_path: Path) -> tuple[Identity, str]:
    """A user with a run whose folder holds links out of it, as no run of ours makes them."""
    ann = fleet.joined("ann", "user")
    with ControlClient(fleet.address, identity=ann) as control:
        run = control.submit(Experiment.parse({"rounds": 1, "strategy": "fedavg", "workload": "image_classification"}))
        control.stop(run)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    plugins = fleet.runs.folder_of(run) / "plugins"
    plugins.mkdir()
    (plugins / "a.py").write_text("a = 1\n", encoding="utf-8")
    (plugins / "out").symlink_to(tmp_path / "outside")
    (plugins / "link.py").symlink_to(tmp_path / "outside" / "secret")
    return ann, run


def test_nothing_but_listed_files_whatever_is_asked(fleet: Members, own: tuple[Identity, str]) -> None:
    ann, run = own
    taken, statuses = set(), set()
    with contextlib.closing(connect(fleet.address, ann)) as channel:
        fetch = channel.unary_stream(
            "/fedloom.proto.v1.Results/Fetch", pb.FetchRequest.SerializeToString, pb.FetchReply.FromString
        )
        for name, length, offset in itertools.product(NAMES, NUMBERS, (0, 5, 2**63, 2**64 - 1)):
            if not name.isprintable() and length > 1:
                continue
            try:
                request = pb.FetchRequest(run_id=run, name=name, length=length, offset=offset)
                data = b"".join(reply.data for reply in fetch(request, timeout=10))
            except grpc.RpcError as exc:
                statuses.add(exc.code().name)
                continue
            assert SECRET not in data and b"PRIVATE KEY" not in data and len(data) <= length, (name, length, offset)
            taken.add(name)
        listed = channel.unary_unary(
            "/fedloom.proto.v1.Results/Files", pb.FilesRequest.SerializeToString, pb.FilesReply.FromString
        )(pb.FilesRequest(run_id=run), timeout=10)
    assert taken == {"run.json", "experiment.toml"}
    assert statuses == {"NOT_FOUND"}, "nothing of it is a fault of the server"
    assert {each.name for each in listed.files} >= {"run.json", "experiment.toml", "plugins/a.py"}
    assert not {each.name for each in listed.files} & {"plugins/link.py", "plugins/out/secret"}
