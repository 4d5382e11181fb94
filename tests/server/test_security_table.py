"""The security table: every call of every service, made by every wrong identity, and what it is answered."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import grpc
import pytest
from cryptography import x509
from google.protobuf.message_factory import GetMessageClass
from members import Members, members

from fedloom.client.control import ControlClient
from fedloom.client.enroll import confirm, get_fresh, renew
from fedloom.client.link import connect, connect_trusting
from fedloom.core.config import Experiment
from fedloom.core.errors import Forbidden
from fedloom.core.identity import SERVER_NAME, Identity, key_pem, make_key, pem
from fedloom.core.messages import PROTOCOL
from fedloom.proto.v1 import control_pb2, enroll_pb2, fleet_pb2, results_pb2
from fedloom.server.access.authority import Authority
from fedloom.server.access.gate import ALLOWED

SERVICES = [
    service
    for module in (fleet_pb2, control_pb2, enroll_pb2, results_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
RAW = ("Fleet/Upload", "Fleet/Download")
CALLS = sorted({f"{service.name}/{method.name}" for service in SERVICES for method in service.methods} | set(RAW))
MEMBERS_ONLY = [call for call in CALLS if not call.startswith("Enroll/")]
ROLES = ("node", "user", "admin")
STREAMED_UP = ("Fleet/Work", "Fleet/Upload")
REQUESTS = {
    "Fleet/Register": fleet_pb2.RegisterRequest(protocol=PROTOCOL, node="thief", session="s"),
    "Control/Watch": control_pb2.WatchRequest(run_id="none"),
    "Control/Stop": control_pb2.StopRequest(run_id="none"),
    **{
        f"Results/{method.name}": GetMessageClass(method.input_type)(run_id="none")
        for method in results_pb2.DESCRIPTOR.services_by_name["Results"].methods
    },
}

Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("members")) as made:
        yield made


@pytest.fixture(scope="module")
def identities(fleet: Members) -> dict[str, Identity]:
    """One of each role, and the wrong ones."""
    made = {role: fleet.joined(f"a-{role}", role) for role in ROLES}
    for role in ROLES:
        made[f"revoked {role}"] = fleet.joined(f"gone-{role}", role)
        fleet.revoke(f"gone-{role}")
    # Signed by the right authority, but never enrolled: as if somebody had stolen the authority's hand, not its books.
    key = make_key()
    unknown = fleet.security.authority.sign_key(key.public_key(), "a-node", "admin", 600.0)
    made["unregistered"] = dataclasses.replace(made["node"], key=key_pem(key), certificate=pem(unknown))
    expired = fleet.security.authority.sign_key(key.public_key(), "a-node", "admin", -1.0)
    made["expired"] = dataclasses.replace(made["node"], key=key_pem(key), certificate=pem(expired))
    stranger = Authority.open(fleet.folder / "another-authority")
    foreign = stranger.sign_key(key.public_key(), "a-admin", "admin", 600.0)
    made["foreign authority"] = dataclasses.replace(made["admin"], key=key_pem(key), certificate=pem(foreign))
    return made


def status(channel: grpc.Channel, call: str) -> str:
    """What a call is answered: `OK`, or the status that refuses it."""
    path = f"/fedloom.proto.v1.{call}"
    request = REQUESTS.get(call)
    data = request.SerializeToString() if request is not None else b""
    metadata = (("fedloom-node", "thief"), ("fedloom-session", "s"))
    try:
        if call in STREAMED_UP:
            list(channel.stream_stream(path, None, None)(iter([data]), metadata=metadata, timeout=10))
        else:
            list(channel.unary_stream(path, None, None)(data, metadata=metadata, timeout=10))
    except grpc.RpcError as exc:
        return str(exc.code().name)
    return "OK"


def test_the_table_has_every_call() -> None:
    assert set(ALLOWED) == set(MEMBERS_ONLY), "a new call needs its roles in server/access/gate.py"
    assert len(CALLS) == len(MEMBERS_ONLY) + 2, "Authority and Join are all a stranger may ask"


@pytest.mark.parametrize("call", MEMBERS_ONLY)
class TestEachCall:
    def test_without_a_certificate_there_is_no_connection(self, fleet: Members, call: str) -> None:
        with contextlib.closing(connect_trusting(fleet.address, fleet.admin.authority)) as channel:
            assert status(channel, call) == "UNAVAILABLE"
        with contextlib.closing(connect(fleet.address)) as channel:  # in the clear
            assert status(channel, call) == "UNAVAILABLE"

    @pytest.mark.parametrize("who", ["expired", "foreign authority"])
    def test_nor_with_a_wrong_one(self, fleet: Members, identities: dict[str, Identity], call: str, who: str) -> None:
        with contextlib.closing(connect(fleet.address, identities[who])) as channel:
            assert status(channel, call) == "UNAVAILABLE"

    @pytest.mark.parametrize("who", ["unregistered", *(f"revoked {role}" for role in ROLES)])
    def test_certificates_the_registry_does_not_vouch_for_are_refused(
        self, fleet: Members, identities: dict[str, Identity], call: str, who: str
    ) -> None:
        with contextlib.closing(connect(fleet.address, identities[who])) as channel:
            assert status(channel, call) == "UNAUTHENTICATED"

    @pytest.mark.parametrize("who", ROLES)
    def test_members_get_what_is_for_their_role(
        self, fleet: Members, identities: dict[str, Identity], call: str, who: str
    ) -> None:
        with contextlib.closing(connect(fleet.address, identities[who])) as channel:
            answer = status(channel, call)
        if who not in ALLOWED[call]:
            assert answer == "PERMISSION_DENIED"
        elif call.startswith("Fleet/"):
            assert answer == "PERMISSION_DENIED", "the call was in another node's name"
        else:
            assert answer in ("OK", "NOT_FOUND", "INVALID_ARGUMENT"), "let in; the request is empty"

    def test_the_port_for_joining_answers_none_of_it(self, fleet: Members, call: str) -> None:
        address = f"127.0.0.1:{fleet.server.enroll_port}"
        with contextlib.closing(connect_trusting(address, fleet.admin.authority)) as channel:
            assert status(channel, call) == "UNIMPLEMENTED"


def test_the_members_port_answers_no_joins(fleet: Members, identities: dict[str, Identity]) -> None:
    with contextlib.closing(connect(fleet.address, identities["admin"])) as channel:
        assert status(channel, "Enroll/Join") == "UNIMPLEMENTED"


@pytest.mark.parametrize("node", ["a-node", "a-admin", ""])
def test_a_node_speaks_for_itself_only(fleet: Members, identities: dict[str, Identity], node: str) -> None:
    request = fleet_pb2.RegisterRequest(protocol=PROTOCOL, node=node, session="s").SerializeToString()
    with contextlib.closing(connect(fleet.address, identities["node"])) as channel:
        call = channel.unary_unary("/fedloom.proto.v1.Fleet/Register", None, None)
        if node == "a-node":
            call(request, timeout=10)
        else:
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=10)
            assert caught.value.code().name in ("PERMISSION_DENIED", "INVALID_ARGUMENT")


def test_a_node_cannot_play_the_server(fleet: Members, identities: dict[str, Identity]) -> None:
    """Its certificate is not for serving, and does not carry the server's name."""
    certificate = x509.load_pem_x509_certificate(identities["node"].certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert SERVER_NAME not in names.get_values_for_type(x509.DNSName)
    from concurrent.futures import ThreadPoolExecutor

    false = grpc.server(ThreadPoolExecutor(1))
    pair = [(identities["node"].key, identities["node"].certificate)]
    port = false.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    false.start()
    try:
        with contextlib.closing(connect(f"127.0.0.1:{port}", identities["user"])) as channel:
            assert status(channel, "Control/ListRuns") == "UNAVAILABLE"
    finally:
        false.stop(None)


def test_users_look_after_their_own_runs_administrators_after_all(
    fleet: Members, identities: dict[str, Identity], linear: Make
) -> None:
    other = fleet.joined("another-user", "user")
    with ControlClient(fleet.address, identity=identities["user"]) as mine:
        run_id = mine.submit(linear(rounds=1, workload={"name": "image_classification"}))
        assert [(row.owner, row.status) for row in mine.runs()] == [("a-user", "queued")]
    with ControlClient(fleet.address, identity=other) as theirs:
        for call in (lambda: theirs.stop(run_id), lambda: list(theirs.watch(run_id))):
            with pytest.raises(Forbidden, match="does not belong to 'another-user'"):
                call()
        assert not theirs.runs()
    with ControlClient(fleet.address, identity=identities["admin"]) as admin:
        assert admin.stop(run_id) == "queued"


def test_a_renewed_certificate_is_for_a_new_key_and_ends_the_old_one_when_it_is_used(fleet: Members) -> None:
    before = fleet.joined("renewing")
    fresh = get_fresh(before)
    assert Identity.load(before.folder) == fresh
    assert sorted(path.name for path in before.folder.iterdir()) == [
        "authority.pem", "certificate.pem", "key.pem", "receipt.json", "server.json"
    ]  # fmt: skip
    old, new = (x509.load_pem_x509_certificate(each.certificate) for each in (before, fresh))
    assert old.public_key() != new.public_key() and old.subject == new.subject
    with contextlib.closing(connect(fleet.address, before)) as channel:
        assert status(channel, "Credentials/Confirm") == "OK", "the fresh one has not been used yet"
        confirm(fresh)
        assert status(channel, "Credentials/Confirm") == "UNAUTHENTICATED", "also on a connection that is open"
    with contextlib.closing(connect(fleet.address, before)) as channel:
        assert status(channel, "Credentials/Renew") == "UNAUTHENTICATED"
    after = renew(fresh)
    fleet.revoke("renewing")
    with contextlib.closing(connect(fleet.address, after)) as channel:
        assert status(channel, "Credentials/Renew") == "UNAUTHENTICATED", "revocation is of every certificate"
