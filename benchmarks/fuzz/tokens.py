"""The join tokens a server has given out, and what may come of each."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography import x509

from benchmarks.fuzz import csr
from benchmarks.fuzz.certificates import excess
from fedloom.core.identity import ROLES
from fedloom.core.messages import PROTOCOL
from fedloom.proto.v1 import enroll_pb2 as pb

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MONTH_S = 30 * 86400.0


@dataclass
class _Given:
    """A token, and how often it has been spent."""

    asked: pb.CreateTokenRequest
    secret: str
    made: float
    used: int = 0

    def lives(self, now: float) -> bool:
        """Whether it should still let somebody in."""
        return self.used < self.asked.uses and now < self.made + self.asked.ttl_s

    def names(self, name: str) -> bool:
        """Whether a member of this name may come of it."""
        stem = re.escape(self.asked.name)
        return re.fullmatch(stem if self.asked.uses == 1 else rf"{stem}-[0-9]+", name) is not None


class Tokens:
    """Makes requests to join, and judges the answers about tokens and certificates.

    Args:
        authority: of the server.
    """

    def __init__(self, authority: x509.Certificate) -> None:
        self._authority = authority
        self._given: dict[str, _Given] = {}
        self._latest: deque[_Given] = deque(maxlen=40)
        self.judges: Mapping[str, Callable[[Any, Any, str], str]] = {
            "Admin/CreateToken": self._created,
            "Enroll/Join": self._joined,
        }

    def request(self, rng: np.random.Generator) -> pb.JoinRequest:
        """To join by a token given out lately; the certificate request is sound or strange."""
        now = time.time()
        given = [each for each in self._latest if each.lives(now)] if rng.random() < 0.8 else list(self._latest)
        secret = given[int(rng.integers(len(given)))].secret if given else "none"
        text = csr.sound() if rng.random() < 0.4 else csr.strange(self._authority, rng)
        return pb.JoinRequest(protocol=PROTOCOL, secret=secret, csr_pem=text)

    def _created(self, asked: pb.CreateTokenRequest, reply: pb.CreateTokenReply | None, status: str) -> str:
        reported = f"token for {asked.role[:20]!r} {asked.name[:70]!r}, {asked.ttl_s} s, {asked.uses} uses: "
        if reply is None:
            return (
                reported + f"refused ({status}) though sound" if _within(asked) and status != "ALREADY_EXISTS" else ""
            )
        given = _Given(asked, reply.secret, time.time())
        self._given[reply.secret] = given
        self._latest.append(given)
        return "" if _within(asked) else reported + "beyond its limits"

    def _joined(self, asked: pb.JoinRequest, reply: pb.JoinReply | None, status: str) -> str:
        given = self._given.get(asked.secret)
        sound = asked.protocol == PROTOCOL and csr.is_sound(asked.csr_pem)
        if status == "ALREADY_EXISTS" and given is not None and given in self._latest:
            self._latest.remove(given)  # others get a turn
        if reply is None:
            # A token that ends within the second may or may not be told dead.
            live = given is not None and given.lives(time.time() + 1.0)
            return f"a sound request was refused: {status}" if live and sound and status != "ALREADY_EXISTS" else ""
        if given is None:
            return f"let in by a secret never given out: {asked.secret[:50]!r}"
        if given.used >= given.asked.uses or time.time() > given.made + given.asked.ttl_s + 1.0:
            return f"let in as {reply.name!r} by a token used {given.used} of {given.asked.uses} times, or too old"
        given.used += 1
        if not sound or not given.names(reply.name) or reply.role != given.asked.role:
            return f"let in as {reply.role} {reply.name!r}, the token was for {given.asked.role} {given.asked.name!r}"
        key = x509.load_pem_x509_csr(asked.csr_pem.encode()).public_key()
        return excess(reply.certificate_pem, reply.name, reply.role, key, self._authority)


def _within(asked: pb.CreateTokenRequest) -> bool:
    """Whether a token may be asked for, as the documentation says."""
    words = [word for pair in asked.labels.items() for word in pair]
    return (
        _NAME.fullmatch(asked.name) is not None
        and len(asked.name) <= (64 if asked.uses == 1 else 56)
        and asked.role in ROLES
        and 0 < asked.ttl_s <= _MONTH_S
        and 1 <= asked.uses <= 10_000
        and len(asked.labels) <= 16
        and all(0 < len(word) <= 64 and word.isprintable() for word in words)
    )
