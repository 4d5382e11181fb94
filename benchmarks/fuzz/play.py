"""Broken messages to one server after the other, slice by slice, with a look at what it holds after each."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from benchmarks.fuzz.certificates import excess
from benchmarks.fuzz.samples import NODE, SESSION, at_work, of_members
from benchmarks.fuzz.sender import PREFIX, Fuzzer, Judge
from benchmarks.fuzz.server import TOKEN, UnderTest, under_test
from benchmarks.fuzz.standing import Standing
from benchmarks.fuzz.tokens import Tokens
from fedloom.core.errors import FedloomError
from fedloom.core.messages import Hello
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import enroll_pb2 as pb

_SHARES = {"token": 0.4, "members": 0.6}
"""Share of the messages each server gets."""
_HEAVY = {"Fleet/Work": 5, "Enroll/Join": 4, "Admin/CreateToken": 3}
"""Calls that get so many times what others do: they have most to say."""

Wrong = Callable[[], list[str]]
"""Tells what has changed that should not have."""


def fuzz(count: int, seed: int, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Send about `count` broken messages; returns for each server what came of them."""
    with tempfile.TemporaryDirectory(prefix="fedloom-fuzz-") as name:
        return {kind: _play(kind, int(share * count), seed, Path(name), say) for kind, share in _SHARES.items()}


def _play(kind: str, count: int, seed: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    members = kind == "members"
    with (
        under_test(folder / kind, members=members) as server,
        _with_members(server, folder / "identities", seed) if members else _without(server, seed) as (fuzzer, look),
    ):
        begin, sent, rss, changed = time.perf_counter(), 0, list[float](), list[str]()
        held = dict[str, Any]()
        slice_ = max(10, count // 800)
        while sent < count and server.alive:
            for call in fuzzer.tallies:
                share = _HEAVY.get(call, 1) * slice_
                fuzzer.send(call, share)
                sent += share
            held = server.held()
            rss.append(server.rss_mb)
            say(f"{kind}: {sent} sent, {rss[-1]:.0f} MB")
            changed += [f"the server says {key}: False" for key, value in held.items() if value is False]
            try:
                changed += look()
            except FedloomError as exc:
                changed.append(f"nobody could look any more: {exc}")
                break
        return {
            "calls": {
                call: {"sent": tally.sent, **tally.answers, "wrong": tally.wrong}
                for call, tally in fuzzer.tallies.items()
            },
            "sent": sent,
            "seconds": time.perf_counter() - begin,
            "alive": server.alive,
            "held": held,
            "changed": changed,
            "rss_mb": rss,
        }


@contextlib.contextmanager
def _without(server: UnderTest, seed: int) -> Iterator[tuple[Fuzzer, Wrong]]:
    """A node of a server without members."""
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    with grpc.insecure_channel(f"127.0.0.1:{server.reported['port']}", options=options) as channel:
        _register(channel, (("fedloom-token", TOKEN),))
        doors = {"Fleet": channel, "Control": channel, "Results": channel}
        yield Fuzzer(doors, at_work(server.reported["run"]), seed, token=TOKEN), list


@contextlib.contextmanager
def _with_members(server: UnderTest, folder: Path, seed: int) -> Iterator[tuple[Fuzzer, Wrong]]:
    """A node, a user, an administrator and a stranger of a server with members."""
    with Standing(server, folder) as standing, contextlib.ExitStack() as stack:
        doors = standing.doors()
        for door in doors.values():
            stack.enter_context(contextlib.closing(door))
        _register(doors["Fleet"], ())
        authority = x509.load_pem_x509_certificate(standing.authority)
        tokens = Tokens(authority)

        def same(asked: pb.AuthorityRequest, reply: pb.AuthorityReply | None, status: str) -> str:
            reported = standing.authority if reply is None else reply.certificate_pem.encode()
            return "" if reported == standing.authority else f"another authority: {reported[:80]!r}"

        def renewed(asked: pb.RenewRequest, reply: pb.RenewReply | None, status: str) -> str:
            if reply is None or not reply.certificate_pem:  # none is due yet, whatever the request contains
                return ""
            key = x509.load_pem_x509_csr(asked.csr_pem.encode()).public_key()
            return excess(reply.certificate_pem, NODE, "node", key, authority)

        judges: dict[str, Judge] = {**tokens.judges, "Enroll/Authority": same, "Credentials/Renew": renewed}
        samples = {**at_work(server.reported["run"]), **of_members()}
        yield Fuzzer(doors, samples, seed, makers={"Enroll/Join": tokens.request}, judges=judges), standing.wrong


def _register(channel: grpc.Channel, who: tuple[tuple[str, str], ...]) -> None:
    """Be let in, as a node."""
    hello = codec.hello_message(Hello(node=NODE, session=SESSION)).SerializeToString()
    channel.unary_unary(PREFIX + "Fleet/Register", bytes, bytes)(hello, metadata=who, timeout=10)
