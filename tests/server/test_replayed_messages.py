"""Messages sent again, by their sender or another: results, uploads, claims, renewals, requests to join, streams.

Everything runs against a server with members, over TLS.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from members import Members, members

from fedloom.client.enroll import confirm, get_fresh, join
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.link import connect, connect_trusting
from fedloom.core.errors import FedloomError, NotFound, ServerUnreachable
from fedloom.core.identity import Identity, JoinToken, certificate_request, make_key
from fedloom.core.messages import PROTOCOL, Ack, Group, GroupKey, GroupResult, Heartbeat, Hello, Inquiry, Verdict
from fedloom.proto.v1 import codec, enroll_pb2
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.server.access import calls
from fedloom.server.access.certificates import MAX_CERTIFICATES, fingerprint_of
from fedloom.server.fleet.planned import RunFacts
from fedloom.testing.by_hand import (
    ManualAgent,
    group_result,
    next_answer,
    open_exchange,
    planned_groups,
    run_spec,
    sum_of_one,
)
from fedloom.testing.fleet import wait_until
from fedloom.testing.records import model_record

PREFIX = "/fedloom.proto.v1."


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path) as fleet:
        yield fleet


@contextlib.contextmanager
def connected(fleet: Members, identity: Identity) -> Iterator[ManualAgent]:
    """A member's agent, moved by hand."""
    hand = ManualAgent(GrpcChannel(fleet.address, identity=lambda: identity), identity.name)
    hand.start()
    try:
        yield hand
    finally:
        hand.channel.close()


@contextlib.contextmanager
def node(fleet: Members, name: str) -> Iterator[ManualAgent]:
    with connected(fleet, fleet.joined(name)) as hand:
        yield hand


def sound(hand: ManualAgent, group: Group) -> GroupResult:
    client = group.jobs[0].client
    return group_result(group.key, client, total=hand.store(sum_of_one(client)))


class TestResults:
    def test_one_that_was_taken_counts_once_however_often_it_comes(self, fleet: Members) -> None:
        with node(fleet, "n") as hand, open_exchange(fleet.server.coordinator, planned_groups(1.0, 1.0)) as opened:
            result = sound(hand, hand.take(Group)[0])
            for _ in range(50):
                hand.channel.send(result)
            hand.channel.send(sound(hand, hand.take(Group, 2)[1]))
            answers = [next_answer(opened) for _ in range(2)]
            assert sorted(answer.index for answer in answers) == [0, 1] and opened.answers.empty()
            assert not fleet.server.payloads._uploads

    def test_one_of_an_earlier_round_is_late_in_the_next_one(self, fleet: Members) -> None:
        coordinator = fleet.server.coordinator
        with node(fleet, "n") as hand:
            with open_exchange(coordinator, planned_groups(1.0)) as opened:
                old = sound(hand, hand.take(Group)[0])
                hand.channel.send(old)
                next_answer(opened)
            with open_exchange(coordinator, planned_groups(1.0), round=2) as opened:
                hand.take(Group, 2)
                for _ in range(20):
                    hand.channel.send(old)
                wait_until(lambda: coordinator.nodes()["n"].assigned and hand.channel.receive(0.2) is None)
                assert opened.answers.empty() and not opened.done
                assert coordinator.take_stale("run") == 1, "late results count once"

    def test_one_under_the_key_of_another_round_or_run_is_no_result_of_it(self, fleet: Members) -> None:
        coordinator = fleet.server.coordinator
        with (
            node(fleet, "n") as hand,
            node(fleet, "other") as other,
            open_exchange(coordinator, planned_groups(1.0), run=run_spec("a")) as mine,
            open_exchange(coordinator, planned_groups(1.0), run=run_spec("b")) as theirs,
        ):
            wait_until(lambda: coordinator.holders(mine) and coordinator.holders(theirs))
            holder = coordinator.holders(theirs)[0]
            stranger = other if holder == "n" else hand
            for key in (GroupKey("b", 1, 0, 0), GroupKey("b", 2, 0, 0), GroupKey("b", 1, 1, 0), GroupKey("c", 1, 0, 0)):
                stranger.channel.send(group_result(key, 0, total=stranger.store(sum_of_one(0))))
            assert {ack.status for ack in stranger.take(Ack, 4)} <= {"rejected", "stale"}
            assert theirs.answers.empty() and not theirs.done and coordinator.holders(theirs) == {0: holder}

    def test_one_of_a_run_that_began_anew_is_of_its_clients_or_none(self, fleet: Members) -> None:
        """The same key in a later session: what counts is that the node has the group now, and its clients."""
        coordinator = fleet.server.coordinator
        with node(fleet, "n") as hand:
            with open_exchange(coordinator, planned_groups(1.0)) as opened:
                old = sound(hand, hand.take(Group)[0])
                hand.channel.send(old)
                next_answer(opened)
            coordinator.forget_run("run", resumable=True)
            again = planned_groups(1.0, 1.0)[1:]  # client 1 is in this group now
            with open_exchange(coordinator, again) as opened:
                wait_until(lambda: coordinator.holders(opened))
                hand.channel.send(old)
                (ack,) = hand.take(Ack, status="rejected")
                assert "expected clients [1]" in ack.message and opened.answers.empty()


class TestTransfers:
    def test_an_upload_without_a_group_is_refused_and_kept_nowhere(self, fleet: Members) -> None:
        model = {"model": model_record(100_000)}
        with node(fleet, "n") as hand:
            with open_exchange(fleet.server.coordinator, planned_groups(1.0), inputs=model) as opened:
                group = hand.take(Group)[0]
                hand.channel.send(group_result(group.key, 0, total=hand.store(sum_of_one(0, size=100_000))))
                next_answer(opened)
                for _ in range(3):
                    with pytest.raises(ServerUnreachable):
                        hand.store(sum_of_one(0, size=100_000))
            assert not fleet.server.payloads._uploads

    def test_the_digest_of_anothers_upload_is_nothing(self, fleet: Members) -> None:
        model = {"model": model_record(100_000)}
        with (
            node(fleet, "n") as hand,
            node(fleet, "thief") as thief,
            open_exchange(fleet.server.coordinator, planned_groups(1.0, 1.0), inputs=model) as opened,
        ):
            wait_until(lambda: len(set(fleet.server.coordinator.holders(opened).values())) == 2)
            group, stolen = hand.take(Group)[0], thief.take(Group)[0]
            ref = hand.store(sum_of_one(group.jobs[0].client, size=100_000))
            thief.channel.send(group_result(stolen.key, stolen.jobs[0].client, total=ref))
            (ack,) = thief.take(Ack, status="rejected")
            assert "is not complete" in ack.message
            hand.channel.send(group_result(group.key, group.jobs[0].client, total=ref))
            assert next_answer(opened).node == "n"

    def test_a_download_that_was_entitled_once_is_not_for_ever(self, fleet: Members) -> None:
        model = {"model": model_record(100_000)}
        with (
            node(fleet, "n") as hand,
            open_exchange(fleet.server.coordinator, planned_groups(1.0), inputs=model) as opened,
        ):
            group = hand.take(Group)[0]
            ref = group.inputs["model"]
            hand.channel.fetch(ref)
            hand.channel.send(group_result(group.key, 0, total=hand.store(sum_of_one(0, size=100_000))))
            next_answer(opened)
            with pytest.raises(NotFound):
                hand.channel.fetch(ref)


class TestStreams:
    def _register(self, channel: grpc.Channel, name: str, session: str) -> None:
        request = codec.hello_message(Hello(node=name, session=session)).SerializeToString()
        channel.unary_unary(PREFIX + "Fleet/Register", None, None)(request, timeout=10)

    def _status(self, channel: grpc.Channel, name: str, session: str) -> str:
        """What a stream in a name and session is answered."""
        metadata = (("fedloom-node", name), ("fedloom-session", session))
        batch = pb.FromAgentBatch(messages=[pb.FromAgent(heartbeat=pb.Heartbeat())]).SerializeToString()
        try:
            list(channel.stream_stream(PREFIX + "Fleet/Work", None, None)(iter([batch]), metadata=metadata, timeout=5))
        except grpc.RpcError as exc:
            return str(exc.code().name)
        return "OK"

    def test_a_session_of_another_member_is_of_no_use(self, fleet: Members) -> None:
        thief = fleet.joined("thief")
        with node(fleet, "n") as hand, contextlib.closing(connect(fleet.address, thief)) as channel:
            session = fleet.server.coordinator.nodes()["n"].hello.session
            self._register(channel, "thief", "own")
            assert self._status(channel, "n", session) == "PERMISSION_DENIED"
            assert self._status(channel, "thief", session) == "NOT_FOUND"
            for name, which in (("n", session), ("thief", session)):
                metadata = (("fedloom-node", name), ("fedloom-session", which))
                head = pb.UploadRequest(sha256="0" * 64, size=1).SerializeToString()
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(PREFIX + "Fleet/UploadOffset", None, None)(head, metadata=metadata, timeout=5)
                assert caught.value.code().name in ("PERMISSION_DENIED", "NOT_FOUND")
            with open_exchange(fleet.server.coordinator, planned_groups(1.0)) as opened:
                hand.channel.send(Heartbeat())
                wait_until(lambda: fleet.server.coordinator.holders(opened))
                assert fleet.server.coordinator.holders(opened) == {0: "n"}

    def test_an_old_session_of_ones_own_is_over(self, fleet: Members) -> None:
        identity = fleet.joined("n")
        with contextlib.closing(connect(fleet.address, identity)) as channel:
            self._register(channel, "n", "first")
            self._register(channel, "n", "second")
            assert self._status(channel, "n", "first") == "NOT_FOUND"
            messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
            metadata = (("fedloom-node", "n"), ("fedloom-session", "second"))
            call = channel.stream_stream(PREFIX + "Fleet/Work", None, None)(
                iter(messages.get, b"end"), metadata=metadata, timeout=20
            )
            wait_until(lambda: fleet.server.coordinator.nodes()["n"].online)
            self._register(channel, "n", "third")
            batch = pb.FromAgentBatch(messages=[pb.FromAgent(heartbeat=pb.Heartbeat())]).SerializeToString()
            with pytest.raises(grpc.RpcError):
                for _ in range(100):
                    messages.put(batch)
                list(call)
                raise grpc.RpcError  # ended in order: the server sent it away
            assert not fleet.server.coordinator.nodes()["n"].online

    def test_a_verdict_counts_of_the_node_that_was_asked_once_and_only_while_it_is_asked(self, fleet: Members) -> None:
        from concurrent.futures import ThreadPoolExecutor

        coordinator = fleet.server.coordinator
        run = RunFacts(spec=run_spec("asked"), labels={})
        with node(fleet, "n") as hand, ThreadPoolExecutor(1) as pool:
            wait_until(lambda: coordinator.nodes()["n"].online, what="its stream")
            asked = pool.submit(coordinator.inquire, run)
            (inquiry,) = hand.take(Inquiry)
            with node(fleet, "late") as late:
                late.channel.send(Verdict(id=inquiry.id, kind="code", reason="a lie"))
                late.channel.send(Heartbeat())
                hand.channel.send(Verdict(id=inquiry.id))
                hand.channel.send(Verdict(id=inquiry.id, kind="code", reason="changed its mind"))
                assert asked.result(10) == {"n": Verdict(id=inquiry.id)}
                hand.channel.send(Verdict(id=inquiry.id, kind="code", reason="again"))
                assert not coordinator._inquiries._open


class TestCredentials:
    def _renew(self, fleet: Members, identity: Identity, csr_pem: str) -> enroll_pb2.RenewReply:
        request = enroll_pb2.RenewRequest(csr_pem=csr_pem).SerializeToString()
        with contextlib.closing(connect(fleet.address, identity)) as channel:
            call = channel.unary_unary(PREFIX + "Credentials/Renew", None, None)
            return enroll_pb2.RenewReply.FromString(call(request, timeout=10))

    def test_a_request_to_renew_sent_again_gives_no_second_life(self, fleet: Members) -> None:
        before = fleet.joined("n")
        request = certificate_request(make_key())
        for _ in range(3):
            self._renew(fleet, before, request)
        fresh = get_fresh(before)
        confirm(fresh)
        with pytest.raises(grpc.RpcError) as caught:
            self._renew(fleet, before, request)
        assert caught.value.code().name == "UNAUTHENTICATED"
        rows = fleet.security.registry._database.execute(
            "select count(*) from certificates where member = 'n' and revoked = 0"
        ).fetchone()
        assert rows[0] == 1, "of all that were made before, none is left"

    def test_anothers_request_is_for_ones_own_name_and_its_key_alone(self, fleet: Members) -> None:
        victim, thief, key = fleet.joined("victim"), fleet.joined("thief"), make_key()
        request = certificate_request(key)
        self._renew(fleet, victim, request)
        reply = self._renew(fleet, thief, request)
        made = x509.load_pem_x509_certificate(reply.certificate_pem.encode())
        assert made.public_key() == key.public_key(), "for whoever has the key, and that is not the thief"
        assert fleet.security.registry.admit(fingerprint_of(made)).name == "thief"

    def test_the_key_of_the_certificate_shown_is_not_certified_again(self, fleet: Members) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        identity = fleet.joined("n")
        own = certificate_request(load_pem_private_key(identity.key, None))  # type: ignore[arg-type]  # a P-256 key
        with pytest.raises(grpc.RpcError, match="expected a request with a new key"):
            self._renew(fleet, identity, own)

    def test_renewals_have_a_pace_and_leave_few_certificates(self, fleet: Members) -> None:
        identity = fleet.joined("n")
        refused = 0
        for _ in range(calls.RENEWALS + 5):
            try:
                self._renew(fleet, identity, certificate_request(make_key()))
            except grpc.RpcError as exc:
                assert exc.code().name == "RESOURCE_EXHAUSTED"
                refused += 1
        assert refused == 5
        rows = fleet.security.registry._database.execute("select count(*) from certificates where member = 'n'")
        assert rows.fetchone()[0] <= MAX_CERTIFICATES + 1

    def test_a_request_to_join_sent_again_makes_no_member(self, fleet: Members) -> None:
        token = fleet.token("n")
        ticket = JoinToken.decode(token)
        join(token, fleet.folder / "identities" / "n")
        request = enroll_pb2.JoinRequest(
            protocol=PROTOCOL, secret=ticket.secret, csr_pem=certificate_request(make_key())
        ).SerializeToString()
        with contextlib.closing(connect_trusting(ticket.address, fleet.admin.authority)) as channel:
            for _ in range(10):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(PREFIX + "Enroll/Join", None, None)(request, timeout=10)
                assert caught.value.code().name == "UNAUTHENTICATED"
        assert [member.name for member in fleet.security.registry.members() if member.role == "node"] == ["n"]


class TestClaims:
    def test_one_of_an_earlier_session_takes_nothing_back(self, fleet: Members) -> None:
        """A node leaves, its group goes to another; its old heartbeat, sent again by a new session, changes nothing."""
        coordinator = fleet.server.coordinator
        slow = fleet.joined("slow")
        with open_exchange(coordinator, planned_groups(1.0)) as opened:
            with connected(fleet, slow) as hand:
                key = hand.take(Group)[0].key
            with node(fleet, "good") as good:
                wait_until(lambda: coordinator.holders(opened) == {0: "good"}, 60)
                with connected(fleet, slow) as hand:
                    for _ in range(20):
                        hand.channel.send(Heartbeat(groups=(key,)))
                    hand.drain()
                    good.channel.send(Heartbeat(groups=(key,)))
                    good.channel.send(group_result(key, 0, total=good.store(sum_of_one(0))))
                    assert next_answer(opened).node == "good" and opened.answers.empty()


def test_neither_log_nor_audit_grows_with_what_is_sent_again(fleet: Members, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    thief = fleet.joined("thief")
    audit = fleet.folder / "state" / "audit.jsonl"
    before = len(audit.read_text(encoding="utf-8").splitlines()), len(caplog.records)
    with contextlib.closing(connect(fleet.address, thief)) as channel, contextlib.suppress(FedloomError):
        for number in range(300):
            metadata = (("fedloom-node", "thief"), ("fedloom-session", "s"))
            request = pb.DownloadRequest(sha256=f"{number:064x}").SerializeToString()
            for path in ("Fleet/Download", "Admin/ListMembers", "Control/ListRuns"):
                with contextlib.suppress(grpc.RpcError):
                    list(channel.unary_stream(PREFIX + path, None, None)(request, metadata=metadata, timeout=10))
    assert len(audit.read_text(encoding="utf-8").splitlines()) - before[0] < 20
    assert len(caplog.records) - before[1] < 100, "nine hundred calls were refused"
