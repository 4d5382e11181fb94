"""What a server may say to people's commands and to a machine that joins: no terminal codes, no strange names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from lying_server import Lies

from fedloom.cli import main
from fedloom.client import enroll
from fedloom.client.agent import MAX_ANNOUNCED, Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.errors import BadMessage
from fedloom.core.identity import Identity, make_key, pem
from fedloom.core.messages import GroupKey, Inquiry, RunOver, RunSpec, ToAgent
from fedloom.proto.v1 import enroll_pb2
from fedloom.server.access.authority import Authority

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b2J\u202eevil\r"
NAMES = ("../../evil", "a/b", "", ".", "..", "-x", "a b", "x" * 65, "n\x1b[2J", "é")


@pytest.fixture
def lies(tmp_path: Path) -> Iterator[Lies]:
    with contextlib.closing(Lies(tmp_path / "server", ESCAPES)) as made:
        yield made


@pytest.mark.parametrize(
    "command",
    [
        ("runs",), ("nodes",), ("watch", "r"), ("stop", "r"), ("logs", "r"), ("logs", "r", "--follow"),
        ("delete", "r"), ("resume", "r"), ("fetch", "r", "--out", "out"), ("audit",), ("audit", "--json"),
        ("node", "list"), ("token", "list"), ("node", "revoke", "n"), ("node", "label", "n", "a=b"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_command_prints_a_servers_terminal_codes(
    command: tuple[str, ...],
    lies: Lies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main([*command, "--identity", str(lies.identity("admin").folder)])
    said = capfd.readouterr()
    assert "evil" in said.out + said.err, "the server's words are shown"
    for text in (said.out, said.err):
        assert not any(code in text for code in ("\x1b]", "\x1b[2J", "\x9b", "\u202e", "\x07")), text
    assert "Traceback" not in said.err and "fault of fedloom" not in said.err


class TestJoining:
    """A server that has the token's authority, and answers with what no server gives."""

    @pytest.mark.parametrize("name", NAMES)
    def test_a_name_that_is_no_members_is_refused(self, name: str, lies: Lies, tmp_path: Path) -> None:
        lies.join = lambda request: lies.admitted(request, name=name)
        with pytest.raises(BadMessage, match="expected one of node, user, admin"):
            enroll.join(lies.token(), tmp_path / "identity")
        assert not (tmp_path / "identity").exists() and not (tmp_path / "evil").exists()

    @pytest.mark.parametrize("role", ["", "root", "../x", "Node"])
    def test_so_is_a_role(self, role: str, lies: Lies, tmp_path: Path) -> None:
        lies.join = lambda request: lies.admitted(request, role=role)
        with pytest.raises(BadMessage, match="expected one of node, user, admin"):
            enroll.join(lies.token(), tmp_path / "identity")

    def test_a_certificate_for_another_key_or_of_another_authority_is_refused(self, lies: Lies, tmp_path: Path) -> None:
        others = Authority.open(tmp_path / "other-authority")
        foreign = pem(others.sign_key(make_key().public_key(), "n", "node", 60.0)).decode()
        another = pem(lies.authority.sign_key(make_key().public_key(), "n", "node", 60.0)).decode()
        for certificate, says in ((foreign, "signed by its authority"), (another, "another key"), ("x", "signed by")):
            lies.join = lambda request, text=certificate: enroll_pb2.JoinReply(  # type: ignore[misc]
                name="n", role="node", certificate_pem=text, port=1
            )
            with pytest.raises(BadMessage, match=says):
                enroll.join(lies.token(), tmp_path / "identity")
        assert not (tmp_path / "identity").exists()

    def test_a_renewal_that_does_not_fit_leaves_the_identity_as_it_was(self, lies: Lies) -> None:
        identity = lies.identity("node")
        files = [path for path in identity.folder.iterdir() if path.name != "receipt.json"]  # says when it was tried
        before = {path: path.read_bytes() for path in files}
        lies.renew = lambda request: enroll_pb2.RenewReply(certificate_pem=identity.certificate.decode())
        with pytest.raises(BadMessage, match="another key"):
            enroll.get_fresh(identity)
        lies.renew = lambda request: enroll_pb2.RenewReply(certificate_pem="nothing")
        with pytest.raises(BadMessage):
            enroll.get_fresh(identity)
        assert {path: path.read_bytes() for path in files} == before
        assert Identity.load(identity.folder) == identity


def test_messages_about_runs_wait_in_the_channel_while_a_group_runs() -> None:
    """A server may announce any number: what an agent has not taken is bounded by its channel's bytes."""
    endless = Endless()
    agent = Agent(endless, "n")
    agent._current = GroupKey("run", 1, 0, 0)
    for _ in range(50):
        agent._look()
    assert len(agent._announced) == MAX_ANNOUNCED == endless.given


class Endless(GrpcChannel):
    """A connection on which one message about a run follows another."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.given = 0

    def receive(self, timeout_s: float) -> ToAgent | None:
        self.given += 1
        spec = RunSpec(run_id=f"r{self.given}", experiment={})
        return (spec, Inquiry(id="i", spec=spec), RunOver(run_id="r", resumable=False))[self.given % 3]
