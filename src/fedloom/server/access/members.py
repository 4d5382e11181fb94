"""Who belongs to the server: join tokens, members (nodes and people), certificates; in the server's SQLite file.

Tokens are kept as digests. A certificate is admitted when the registry has it, its member is not revoked and its time
is not over; what the certificate itself says is never believed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedloom.core.clock import SYSTEM_CLOCK
from fedloom.core.errors import BadMessage, LimitExceeded, NotFound, RunExists, Unauthenticated
from fedloom.core.identity import ROLES

_SCHEMA = """
create table if not exists tokens (
  secret_sha256 text primary key, name text not null, role text not null, labels text not null,
  uses integer not null, used integer not null default 0, expires real not null
);
create table if not exists members (
  name text primary key, role text not null, labels text not null, enrolled real not null, revoked real
);
create table if not exists certificates (
  fingerprint text primary key, member text not null references members (name), expires real not null,
  issued real not null, revoked integer not null default 0
);
create index if not exists certificates_of on certificates (member);
"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_NAME = 64
"""Characters of a member's name: no certificate takes more."""
MAX_STEM = 56
"""Characters of a name that several members get with a number behind it."""
MAX_LABELS = 16
MAX_LABEL = 64
"""Characters of a label's key or value."""
MAX_TTL_S = 30 * 86400.0
MAX_USES = 10_000
MAX_TOKENS = 10_000
"""Tokens that may still be spent; those that may not any more are forgotten."""
MAX_MEMBERS = 20_000
"""Members in the file, revoked ones included; the longest revoked are forgotten for new ones."""
MAX_CERTIFICATES = 8
"""Certificates of one member: the newest, and the one it shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A node or a person, as the registry knows it."""

    name: str
    role: str
    labels: Mapping[str, str] = field(default_factory=dict)
    enrolled_at: float = 0.0
    expires_at: float = 0.0
    """When its newest certificate ends; seconds since 1970."""
    revoked_at: float = 0.0
    """0 for members in good standing."""
    fingerprint: str = ""


class Registry:
    """Tokens, members and certificates. Thread-safe.

    Args:
        file: the SQLite file.
        now: the wall clock; seconds since 1970.
    """

    def __init__(self, file: Path | str, now: Callable[[], float] = SYSTEM_CLOCK.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=30)
        self._database.execute("pragma journal_mode=wal")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def create_token(self, name: str, role: str, labels: Mapping[str, str], ttl_s: float, uses: int) -> str:
        """A new join token's secret; only its digest is kept.

        Raises:
            BadMessage: a value out of its limits.
            RunExists: the name belongs to a member in good standing.
            LimitExceeded: there are `MAX_TOKENS` already.
        """
        _check_name(name, MAX_NAME if uses == 1 else MAX_STEM)
        check_labels(labels)
        if role not in ROLES:
            raise BadMessage(f"role: expected one of {', '.join(ROLES)}, got {role[:40]!r}")
        if not 0 < ttl_s <= MAX_TTL_S or not 1 <= uses <= MAX_USES:
            raise BadMessage(
                f"token {name!r}: expected a life of at most {MAX_TTL_S / 86400:.0f} days and 1 to {MAX_USES} uses, "
                f"got {ttl_s:g} s and {uses}"
            )
        secret = secrets.token_urlsafe(32)
        with self._lock:
            if uses == 1:
                self._check_free(name)
            self._make_room_for_token()
            self._database.execute(
                "insert into tokens (secret_sha256, name, role, labels, uses, expires) values (?, ?, ?, ?, ?, ?)",
                (_digest(secret), name, role, json.dumps(dict(labels)), uses, self._now() + ttl_s),
            )
        return secret

    def join(self, secret: str, sign: Callable[[str, str], x509.Certificate]) -> tuple[Member, x509.Certificate]:
        """Spend one use of a token; all or nothing.

        Args:
            secret: the token's.
            sign: makes the certificate from the new member's name and role.

        Raises:
            Unauthenticated: no such token, or it is used up or too old; which of these is not told.
            RunExists: the name belongs to a member in good standing.
            LimitExceeded: there are `MAX_MEMBERS` in good standing already.
        """
        with self._lock:
            self._database.execute("begin immediate")
            try:
                member, certificate = self._join(secret, sign)
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")
        return member, certificate

    def enroll(self, name: str, role: str, certificate: x509.Certificate) -> None:
        """Put a member in without a token, its older certificates out: the server's own administrator."""
        with self._lock:
            self._database.execute(
                "insert into members (name, role, labels, enrolled) values (?, ?, '{}', ?) "
                "on conflict (name) do update set role = excluded.role, revoked = null",
                (name, role, self._now()),
            )
            self._database.execute("update certificates set revoked = 1 where member = ?", (name,))
            self._add_certificate(name, certificate)

    def renew(self, shown: str, certificate: x509.Certificate) -> None:
        """Know a member's fresh certificate; the one it shows goes on until its own end.

        Args:
            shown: fingerprint of the certificate the member shows.
            certificate: the fresh one.

        Raises:
            Unauthenticated: the shown one is not admitted (any more).
        """
        with self._lock:
            self._add_certificate(self._admit(shown).name, certificate, shown)

    def admit(self, fingerprint: str) -> Member:
        """Whose certificate this is.

        Raises:
            Unauthenticated: the registry does not know it, it is revoked, or its time is over.
        """
        with self._lock:
            return self._admit(fingerprint)

    def members(self) -> Sequence[Member]:
        """Everybody who has joined, by name, revoked ones included."""
        with self._lock:
            rows = self._database.execute(
                "select m.name, m.role, m.labels, m.enrolled, max(c.expires), m.revoked, c.fingerprint from members m "
                "left join certificates c on c.member = m.name group by m.name order by m.name"
            ).fetchall()
        return [_member(row[:6], row[6] or "") for row in rows]

    def revoke(self, name: str) -> None:
        """Refuse a member's certificates from now on. Its name may be given out again.

        Raises:
            NotFound: nobody of this name, or revoked already.
        """
        with self._lock:
            changed = self._database.execute(
                "update members set revoked = ? where name = ? and revoked is null", (self._now(), name)
            ).rowcount
            if not changed:
                raise NotFound(f"no member {name[:80]!r} in good standing; `fedloom node list` shows them")
            self._database.execute("update certificates set revoked = 1 where member = ?", (name,))

    def label(self, name: str, add: Mapping[str, str], remove: Sequence[str]) -> Mapping[str, str]:
        """Change a member's labels; returns what it has then."""
        with self._lock:
            row = self._database.execute("select labels from members where name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(f"no member {name[:80]!r}; `fedloom node list` shows them")
            labels = {key: value for key, value in json.loads(row[0]).items() if key not in remove} | dict(add)
            check_labels(labels)
            self._database.execute("update members set labels = ? where name = ?", (json.dumps(labels), name))
        return labels

    # Under the lock

    def _admit(self, fingerprint: str) -> Member:
        row = self._database.execute(
            "select m.name, m.role, m.labels, m.enrolled, c.expires, m.revoked, c.revoked from certificates c "
            "join members m on m.name = c.member where c.fingerprint = ?",
            (fingerprint,),
        ).fetchone()
        if row is None:
            raise Unauthenticated("this server does not know the caller's certificate; join with a new token")
        if row[5] is not None or row[6]:
            raise Unauthenticated(f"{row[0]!r} was revoked; join with a new token")
        if row[4] <= self._now():
            raise Unauthenticated(f"the certificate of {row[0]!r} has expired; join with a new token")
        return _member(row[:6], fingerprint)

    def _join(self, secret: str, sign: Callable[[str, str], x509.Certificate]) -> tuple[Member, x509.Certificate]:
        now = self._now()
        row = self._database.execute(
            "update tokens set used = used + 1 where secret_sha256 = ? and used < uses and expires > ? "
            "returning name, role, labels, uses, used",
            (_digest(secret), now),
        ).fetchone()
        if row is None:
            raise Unauthenticated("no such join token, or it is used up or too old; ask for a new one")
        name = row[0] if row[3] == 1 else self._free_name(row[0], row[4])
        self._check_free(name)
        self._make_room_for_member(name)
        certificate = sign(name, row[1])
        self._database.execute(
            "insert into members (name, role, labels, enrolled) values (?, ?, ?, ?) on conflict (name) do update set "
            "role = excluded.role, labels = excluded.labels, enrolled = excluded.enrolled, revoked = null",
            (name, row[1], row[2], now),
        )
        self._add_certificate(name, certificate)
        return Member(name=name, role=row[1], labels=json.loads(row[2]), enrolled_at=now), certificate

    def _free_name(self, stem: str, first: int) -> str:
        """The first of STEM-first, STEM-first+1, … that no member in good standing has."""
        names = self._database.execute("select name from members where revoked is null").fetchall()
        taken = {name for (name,) in names}
        return next(name for number in itertools.count(first) if (name := f"{stem}-{number}") not in taken)

    def _check_free(self, name: str) -> None:
        row = self._database.execute("select 1 from members where name = ? and revoked is null", (name,)).fetchone()
        if row is not None:
            raise RunExists(f"{name!r} is a member already; choose another name, or revoke it first")

    def _make_room_for_token(self) -> None:
        self._database.execute("delete from tokens where used >= uses or expires <= ?", (self._now(),))
        if self._count("tokens") >= MAX_TOKENS:
            raise LimitExceeded(
                f"{MAX_TOKENS} join tokens may still be spent, and no more are kept; wait until some have ended, and "
                "give a token more uses instead of making many"
            )

    def _make_room_for_member(self, name: str) -> None:
        known = self._database.execute("select 1 from members where name = ?", (name,)).fetchone()
        if known is not None or self._count("members") < MAX_MEMBERS:
            return
        oldest = self._database.execute(
            "select name from members where revoked is not null order by revoked limit 1"
        ).fetchone()
        if oldest is None:
            raise LimitExceeded(f"this server has {MAX_MEMBERS} members already; an administrator can revoke some")
        self._database.execute("delete from certificates where member = ?", oldest)
        self._database.execute("delete from members where name = ?", oldest)

    def _count(self, table: str) -> int:
        return int(self._database.execute(f"select count(*) from {table}").fetchone()[0])

    def _add_certificate(self, name: str, certificate: x509.Certificate, shown: str = "") -> None:
        self._database.execute(
            "insert into certificates (fingerprint, member, expires, issued) values (?, ?, ?, ?)",
            (fingerprint_of(certificate), name, certificate.not_valid_after_utc.timestamp(), self._now()),
        )
        self._database.execute(
            "delete from certificates where member = ? and fingerprint != ? and rowid not in "
            "(select rowid from certificates where member = ? order by rowid desc limit ?)",
            (name, shown, name, MAX_CERTIFICATES),
        )


def fingerprint_of(certificate: x509.Certificate) -> str:
    """The name of a certificate in the registry."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise `BadMessage` for labels beyond their limits."""
    words = [word for pair in labels.items() for word in pair]
    if len(labels) > MAX_LABELS or not all(0 < len(word) <= MAX_LABEL and word.isprintable() for word in words):
        raise BadMessage(f"labels: expected at most {MAX_LABELS}, keys and values of 1 to {MAX_LABEL} characters")


def _check_name(name: str, longest: int) -> None:
    if len(name) > longest or not _NAME.fullmatch(name):
        raise BadMessage(
            f"name: expected 1 to {longest} letters, digits, dots, dashes or underscores, the first a letter or digit, "
            f"got {name[:80]!r} ({len(name)}); one that several members share ends in a number, so it is shorter"
        )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _member(row: tuple[str, str, str, float, float | None, float | None], fingerprint: str) -> Member:
    name, role, labels, enrolled, expires, revoked = row
    return Member(
        name=name,
        role=role,
        labels=json.loads(labels),
        enrolled_at=enrolled,
        expires_at=expires or 0.0,
        revoked_at=revoked or 0.0,
        fingerprint=fingerprint,
    )
