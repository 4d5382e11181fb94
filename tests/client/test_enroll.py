"""Joining: whom a device trusts, what it sends, what it keeps; renewing, and being put out."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from members import Members, members

from fedloom.client import enroll
from fedloom.client.agent import Agent
from fedloom.client.enroll import Renewer, join, renewal_due_s
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.errors import BadMessage, FedloomError, RunExists, ServerUnreachable, Unauthenticated, UsageError
from fedloom.core.identity import Identity, JoinToken, certificate_request, make_key
from fedloom.core.messages import PROTOCOL
from fedloom.proto.v1.enroll_pb2_grpc import EnrollStub
from fedloom.testing.by_hand import next_answer, open_exchange, planned_groups, run_spec
from fedloom.testing.fleet import wait_until
from fedloom.testing.records import model_record


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("members")) as made:
        yield made


def test_a_device_joins_and_its_key_is_its_own(fleet: Members) -> None:
    identity = fleet.joined("lab-7", labels={"site": "lab"})
    assert (identity.name, identity.role, identity.address) == ("lab-7", "node", fleet.address)
    assert Identity.load(identity.folder) == identity
    modes = {path.name: path.stat().st_mode & 0o777 for path in identity.folder.iterdir()}
    names = ("key.pem", "certificate.pem", "authority.pem", "receipt.json", "server.json")
    assert modes == dict.fromkeys(names, 0o600)
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(identity.authority))
    stored = [path.read_bytes() for path in (fleet.folder / "state").rglob("*") if path.is_file()]
    key = b"".join(identity.key.splitlines()[1:-1])
    assert not any(key[60:120] in content for content in stored), "the server never saw it"
    (row,) = [member for member in fleet.security.registry.members() if member.name == "lab-7"]
    assert row.labels == {"site": "lab"} and row.fingerprint


def test_a_token_is_spent_once(fleet: Members, tmp_path: Path) -> None:
    token = fleet.token("once")
    join(token, tmp_path / "first")
    with pytest.raises(Unauthenticated, match="already used"):
        join(token, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_token_for_three_names_them(fleet: Members, tmp_path: Path) -> None:
    token = fleet.token("farm", uses=3)
    assert [join(token, tmp_path / str(n)).name for n in range(3)] == ["farm-1", "farm-2", "farm-3"]
    with pytest.raises(Unauthenticated):
        join(token, tmp_path / "4")


def test_many_at_once_cannot_spend_it_twice(fleet: Members, tmp_path: Path) -> None:
    token, outcomes = fleet.token("race"), []

    def attempt(n: int) -> None:
        try:
            outcomes.append(join(token, tmp_path / str(n)).name)
        except FedloomError as exc:
            outcomes.append(type(exc).__name__)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["Unauthenticated"] * 5 + ["race"]


def test_an_old_token_is_refused(fleet: Members, tmp_path: Path) -> None:
    token = fleet.token("late", ttl_s=0.05)
    time.sleep(0.1)
    with pytest.raises(Unauthenticated):
        join(token, tmp_path / "late")


@pytest.mark.parametrize("change", ["first", "last"])
def test_a_wrong_secret_is_refused(fleet: Members, tmp_path: Path, change: str) -> None:
    ticket = JoinToken.decode(fleet.token(f"altered-{change}"))
    secret = ticket.secret
    wrong = ("x" if secret[0] != "x" else "y") + secret[1:] if change == "first" else secret[:-1]
    with pytest.raises(Unauthenticated):
        join(dataclasses.replace(ticket, secret=wrong).encode(), tmp_path / "n")


def test_a_server_of_another_authority_never_sees_the_secret(
    fleet: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token of one server, the address of another: as when a stranger answers in its place."""
    with members(tmp_path / "impostor") as impostor:
        ticket = JoinToken.decode(fleet.token("careful"))
        asked: list[str] = []
        monkeypatch.setattr(impostor.security.registry, "join", lambda secret, sign: asked.append(secret))
        led_astray = dataclasses.replace(ticket, address=f"127.0.0.1:{impostor.server.enroll_port}")
        with pytest.raises(Unauthenticated, match="did not create this token"):
            join(led_astray.encode(), tmp_path / "careful")
    assert not asked
    join(ticket.encode(), tmp_path / "careful")  # the secret is still good


def test_a_name_belongs_to_one_member_until_it_is_revoked(fleet: Members, tmp_path: Path) -> None:
    first = fleet.joined("twin")
    with pytest.raises(FedloomError, match="is already a member"):
        fleet.token("twin")
    fleet.revoke("twin")
    second = join(fleet.token("twin"), tmp_path / "twin")
    with pytest.raises(Unauthenticated, match="was revoked"):
        enroll.renew(first)
    enroll.renew(second)


def test_a_taken_folder_is_not_written_over(fleet: Members) -> None:
    identity = fleet.joined("settled")
    token = fleet.token("newcomer")
    with pytest.raises(UsageError, match="already contains an identity"):
        join(token, identity.folder)
    assert Identity.load(identity.folder) == identity


def test_a_key_others_can_read_is_not_used(fleet: Members) -> None:
    identity = fleet.joined("careless")
    (identity.folder / "key.pem").chmod(0o644)
    with pytest.raises(UsageError, match="is readable by other users"):
        Identity.load(identity.folder)


@pytest.mark.parametrize("text", ["", "fedloom1.", "fedloom1.!!!", "fedloom1.W10", "fedloom1.WzEsMiwzXQ", "hello"])
def test_what_is_no_token_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a join token"):
        join(text, tmp_path / "n")


def test_nobody_there(tmp_path: Path) -> None:
    token = JoinToken(address="127.0.0.1:9", authority_sha256="0" * 64, secret="s").encode()
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9"):
        join(token, tmp_path / "n")


@pytest.mark.parametrize("csr", ["", "nonsense", "x" * 10_000])
def test_requests_that_are_none_spend_nothing(fleet: Members, tmp_path: Path, csr: str) -> None:
    secret = fleet.security.registry.create_token(f"csr-{len(csr)}", "node", {}, 60.0, 1)
    sign = lambda name, role: fleet.security.authority.sign_request(csr, name, role, 60.0)  # noqa: E731
    with pytest.raises(BadMessage):
        fleet.security.registry.join(secret, sign)
    good = certificate_request(make_key())
    fleet.security.registry.join(
        secret, lambda name, role: fleet.security.authority.sign_request(good, name, role, 60.0)
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"role": "root"}, "expected one of node, user, admin"),
        ({"ttl_s": 0.0}, "expected at most 30 days"),
        ({"ttl_s": 1e9}, "expected at most 30 days"),
        ({"uses": 0}, "1 to 10000 uses"),
        ({"labels": {"k": ""}}, "keys and values of 1 to 64 characters"),
        ({"labels": {str(n): "v" for n in range(17)}}, "expected at most 16"),
        ({"name": "../up"}, "expected 1 to 64 letters"),
        ({"name": ""}, "expected 1 to 64 letters"),
        ({"name": "x" * 65}, "expected 1 to 64 letters"),
    ],
)
def test_tokens_out_of_their_limits(fleet: Members, options: dict[str, object], text: str) -> None:
    with pytest.raises(BadMessage, match=text):
        fleet.token(**{"name": "any", **options})  # type: ignore[arg-type]


def test_the_registry_and_the_authority_outlive_the_server(tmp_path: Path) -> None:
    with members(tmp_path) as first:
        identity = first.joined("lasting")
        fresh = enroll.renew(identity)
    with members(tmp_path) as again:
        assert again.security.authority.certificate_pem == identity.authority
        enroll.renew(dataclasses.replace(fresh, address=again.address))
        with pytest.raises(RunExists):
            again.security.registry.create_token("lasting", "node", {}, 60.0, 1)


class TestAtWork:
    """A joined node's agent."""

    def _agent(self, identity: Callable[[], Identity]) -> tuple[Agent, threading.Thread, list[BaseException]]:
        agent = Agent(GrpcChannel(identity().address, identity=identity), identity().name, give_up_s=20)
        ended: list[BaseException] = []

        def run() -> None:
            try:
                agent.run()
            except FedloomError as exc:
                ended.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        return agent, thread, ended

    def test_it_works_and_a_revocation_cuts_it_off_at_once(self, fleet: Members) -> None:
        identity = fleet.joined("worker")
        coordinator = fleet.server.coordinator
        _, thread, ended = self._agent(lambda: identity)
        with open_exchange(
            coordinator, planned_groups(1.0), run=run_spec("secure"), inputs={"model": model_record(5)}
        ) as opened:
            answer = next_answer(opened, 20.0)
            assert answer.node == "worker" and answer.result is not None
        fleet.revoke("worker")
        thread.join(60)
        assert not thread.is_alive() and isinstance(ended[0], Unauthenticated) and "revoked" in str(ended[0])
        assert not coordinator.nodes()["worker"].online

    def test_work_of_a_revoked_node_goes_to_another(self, fleet: Members) -> None:
        coordinator = fleet.server.coordinator
        names = ("held", "spare")
        held, spare = (fleet.joined(name) for name in names)
        slow = run_spec("slow", max_attempts=3)
        slow.experiment["workload"]["sleep_s"] = 1.0
        _, first, _ = self._agent(lambda: held)
        with open_exchange(coordinator, planned_groups(1.0), run=slow, inputs={"model": model_record(5)}) as opened:
            wait_until(lambda: coordinator.nodes().get("held") and coordinator.nodes()["held"].assigned)
            fleet.revoke("held")
            agent, second, _ = self._agent(lambda: spare)
            assert next_answer(opened, 20.0).node == "spare"
        agent.stop()
        first.join(60)
        second.join(60)

    def test_a_certificate_is_renewed_before_it_ends_and_an_unrenewed_one_is_cut_off(self, tmp_path: Path) -> None:
        with members(tmp_path, certificate_days=3.0 / 86400) as fleet:
            keeps, forgets = fleet.joined("keeps"), fleet.joined("forgets")
            assert 0 < renewal_due_s(keeps) <= 2
            renewer = Renewer(keeps)
            renewer.start()
            one, thread, ended = self._agent(lambda: renewer.identity)
            _, other, refused = self._agent(lambda: forgets)
            try:
                wait_until(lambda: fleet.server.coordinator.online == 2)
                wait_until(lambda: renewer.identity.key != keeps.key)
                with pytest.raises(Unauthenticated, match="a newer certificate of 'keeps' has been used"):
                    wait_until(lambda: enroll.confirm(keeps))
                other.join(60)
                assert not other.is_alive() and refused, "the stream of an expired certificate ends"
                time.sleep(1.0)
                assert thread.is_alive() and not ended
                assert renewer.identity.certificate != keeps.certificate
            finally:
                one.stop()
                thread.join(60)
                renewer.stop()


def test_the_enrolment_port_takes_small_messages_only(fleet: Members) -> None:
    import grpc

    from fedloom.client.link import connect_trusting
    from fedloom.proto.v1 import enroll_pb2 as pb

    channel = connect_trusting(f"127.0.0.1:{fleet.server.enroll_port}", fleet.admin.authority)
    with pytest.raises(grpc.RpcError) as caught:
        EnrollStub(channel).Join(pb.JoinRequest(protocol=PROTOCOL, secret="s", csr_pem="x" * (1 << 20)), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    odd = (pb.JoinRequest(protocol=PROTOCOL + 1, secret="s"), pb.JoinRequest(protocol=PROTOCOL, secret="s" * 300))
    for request in odd:
        with pytest.raises(grpc.RpcError) as caught:
            EnrollStub(channel).Join(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    channel.close()
