"""Members of the server: join tokens, members (nodes and users), certificates; in the server's SQLite file.

A certificate is admitted when the registry has it, its member is not revoked, no newer one of the member has been used,
and it has not expired; the certificate's own content is never trusted.
"""

from __future__ import annotations

import itertools
import json
import secrets
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from fedloom.core.clock import SYSTEM_CLOCK
from fedloom.core.errors import LimitExceeded, NotFound, RunExists, Unauthenticated
from fedloom.server.access import certificates as certificate_table
from fedloom.server.access import tokens as token_table
from fedloom.server.access.certificates import REPLACED, Certificates
from fedloom.server.access.member_names import MAX_NAME, MAX_STEM, check_labels, check_name
from fedloom.server.access.tokens import Token, Tokens
from fedloom.server.store.columns import add_columns

_SCHEMA = """
create table if not exists members (
  name text primary key, role text not null, labels text not null, enrolled real not null, revoked real,
  id text not null default ''
);
"""
_ADDED = {
    "members": {"token": "text not null default ''", "id": "text not null default ''"},
}
"""Columns missing from files of earlier versions, by table."""
_OF_MEMBER = "m.id, m.name, m.role, m.labels, m.enrolled, m.revoked, m.token"
MAX_MEMBERS = 20_000
"""Members in the file, revoked ones included; the longest revoked are forgotten for new ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A node or a person, as the registry knows it."""

    id: str = ""
    """Its permanent id; a later member of the same name has another."""
    name: str
    role: str
    labels: Mapping[str, str] = field(default_factory=dict)
    enrolled_at: float = 0.0
    expires_at: float = 0.0
    """Expiry of its newest certificate; seconds since 1970."""
    revoked_at: float = 0.0
    """0 for members in good standing."""
    fingerprint: str = ""
    token: str = ""
    """Id of the token it joined with; empty for the server's own administrator."""


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
        self._database.executescript(_SCHEMA + certificate_table.SCHEMA + token_table.SCHEMA)
        for table, columns in {**_ADDED, "certificates": certificate_table.ADDED, "tokens": token_table.ADDED}.items():
            add_columns(self._database, table, columns)
        self._database.execute("update members set id = lower(hex(randomblob(16))) where id = ''")
        self._tokens, self._certificates = Tokens(self._database, now), Certificates(self._database, now)

    def close(self) -> None:
        """Close the file, as soon as no call uses it: closing it under a statement would end the process."""
        with self._lock:
            self._database.close()

    def create_token(
        self, name: str, role: str, labels: Mapping[str, str], ttl_s: float, uses: int, maker: str = ""
    ) -> str:
        """Create a join token; returns its secret, of which only the digest is stored.

        Args:
            name: of the member to be, or of several with a number behind it.
            role: `node`, `user` or `admin`.
            labels: of the members.
            ttl_s: seconds it admits.
            uses: how many may join with it.
            maker: the administrator who creates it.

        Raises:
            BadMessage: a value out of its limits.
            RunExists: the name belongs to a member in good standing.
            LimitExceeded: there are `MAX_TOKENS` already.
        """
        check_name(name, MAX_NAME if uses == 1 else MAX_STEM)
        check_labels(labels)
        wanted = Token(id="", name=name, role=role, labels=labels, uses=uses, maker=maker)
        with self._lock:
            if uses == 1:
                self._check_free(name)
            return self._tokens.create(wanted, ttl_s)

    def tokens(self) -> Sequence[Token]:
        """Return all tokens not yet forgotten, oldest first, with the members they admitted."""
        with self._lock:
            admitted: dict[str, list[str]] = {}
            for name, token_id in self._database.execute("select name, token from members where token != ''"):
                admitted.setdefault(token_id, []).append(name)
            return self._tokens.rows(admitted)

    def end_token(self, token_id: str) -> Token:
        """Revoke a token; members it has admitted remain.

        Raises:
            NotFound: no usable token of this id.
        """
        with self._lock:
            self._tokens.end(token_id)
        return next(token for token in self.tokens() if token.id == token_id)

    def join(self, secret: str, sign: Callable[[str, str], x509.Certificate]) -> tuple[Member, x509.Certificate]:
        """Spend one use of a token; all or nothing.

        Args:
            secret: the token's.
            sign: makes the certificate from the new member's name and role.

        Raises:
            Unauthenticated: no such token, or it is revoked, used up or too old; which of these is not disclosed.
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
        """Enrol a member without a token (the server's administrator), and revoke its older certificates."""
        with self._lock:
            self._database.execute(
                "insert into members (name, role, labels, enrolled, id) values (?, ?, '{}', ?, ?) "
                "on conflict (name) do update set role = excluded.role, revoked = null",
                (name, role, self._now(), _new_id()),
            )
            self._certificates.revoke_all(name)
            self._certificates.add(name, certificate)

    def renew(self, shown: str, certificate: x509.Certificate) -> None:
        """Add a member's new certificate; the first use of it revokes the one shown.

        Args:
            shown: fingerprint of the certificate the member shows.
            certificate: the new one.

        Raises:
            Unauthenticated: the shown one is not admitted (any more).
        """
        with self._lock:
            self._certificates.add(self._admit(shown).name, certificate, shown)

    def admit(self, fingerprint: str) -> Member:
        """Return the member whose certificate this is.

        Raises:
            Unauthenticated: the registry does not know it, it is revoked, or its time is over.
        """
        with self._lock:
            return self._admit(fingerprint)

    def members(self) -> Sequence[Member]:
        """Return all members by name, revoked ones included."""
        with self._lock:
            rows = self._database.execute(
                f"select {_OF_MEMBER}, max(c.expires), c.fingerprint from members m "
                "left join certificates c on c.member = m.name group by m.name order by m.name"
            ).fetchall()
        return [_member(row[:7], row[7], row[8] or "") for row in rows]

    def revoke(self, name: str, *, keep_token: bool = False) -> Sequence[str]:
        """Reject a member's certificates from now on, and revoke the tokens it could rejoin with.

        Its name may be given out again.

        Args:
            name: the member's.
            keep_token: leave the token it joined by as it is.

        Returns:
            The ids of the tokens that have ended.

        Raises:
            NotFound: no such member, or revoked already.
        """
        with self._lock:
            row = self._database.execute(
                "update members set revoked = ? where name = ? and revoked is null returning token", (self._now(), name)
            ).fetchone()
            if row is None:
                raise NotFound(f"no member {name[:80]!r} in good standing; list them with `fedloom node list`")
            self._certificates.revoke_all(name)
            return self._tokens.end_with(name, "" if keep_token else row[0])

    def label(self, name: str, add: Mapping[str, str], remove: Sequence[str]) -> Mapping[str, str]:
        """Change a member's labels; returns all its labels."""
        with self._lock:
            row = self._database.execute("select labels from members where name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(f"no member {name[:80]!r}; list them with `fedloom node list`")
            labels = {key: value for key, value in json.loads(row[0]).items() if key not in remove} | dict(add)
            check_labels(labels)
            self._database.execute("update members set labels = ? where name = ?", (json.dumps(labels), name))
        return labels

    # Under the lock

    def _admit(self, fingerprint: str) -> Member:
        row = self._database.execute(
            f"select {_OF_MEMBER}, c.expires, c.revoked, c.used, c.rowid from certificates c "
            "join members m on m.name = c.member where c.fingerprint = ?",
            (fingerprint,),
        ).fetchone()
        if row is None:
            raise Unauthenticated("this server does not know the caller's certificate; join with a new token")
        member, ended, used, number = _member(row[:7], row[7], fingerprint), row[8], row[9], row[10]
        if not member.revoked_at and ended == REPLACED:
            raise Unauthenticated(
                f"a newer certificate of {member.name!r} has been used, which revoked this one; use the newer one"
            )
        if member.revoked_at or ended:
            raise Unauthenticated(f"{member.name!r} was revoked; join with a new token")
        if member.expires_at <= self._now():
            raise Unauthenticated(f"the certificate of {member.name!r} has expired; join with a new token")
        if not used:
            self._certificates.begin_use(member.name, number)
        return member

    def _join(self, secret: str, sign: Callable[[str, str], x509.Certificate]) -> tuple[Member, x509.Certificate]:
        token = self._tokens.spend(secret)
        name = token.name if token.uses == 1 else self._free_name(token.name, token.used)
        self._check_free(name)
        self._make_room_for_member(name)
        certificate, now, member_id = sign(name, token.role), self._now(), _new_id()
        self._database.execute(
            "insert into members (name, role, labels, enrolled, token, id) values (?, ?, ?, ?, ?, ?) on conflict "
            "(name) do update set role = excluded.role, labels = excluded.labels, enrolled = excluded.enrolled, "
            "token = excluded.token, id = excluded.id, revoked = null",
            (name, token.role, json.dumps(dict(token.labels)), now, token.id, member_id),
        )
        self._certificates.add(name, certificate)
        member = Member(id=member_id, name=name, role=token.role, labels=token.labels, enrolled_at=now, token=token.id)
        return member, certificate

    def _free_name(self, stem: str, first: int) -> str:
        """Return the first of STEM-first, STEM-first+1, … that no member in good standing has."""
        names = self._database.execute("select name from members where revoked is null").fetchall()
        taken = {name for (name,) in names}
        return next(name for number in itertools.count(first) if (name := f"{stem}-{number}") not in taken)

    def _check_free(self, name: str) -> None:
        row = self._database.execute("select 1 from members where name = ? and revoked is null", (name,)).fetchone()
        if row is not None:
            raise RunExists(f"{name!r} is already a member; choose another name, or revoke it first")

    def _make_room_for_member(self, name: str) -> None:
        known = self._database.execute("select 1 from members where name = ?", (name,)).fetchone()
        if known is not None or self._member_count() < MAX_MEMBERS:
            return
        oldest = self._database.execute(
            "select name from members where revoked is not null order by revoked limit 1"
        ).fetchone()
        if oldest is None:
            raise LimitExceeded(
                f"this server has {MAX_MEMBERS} members, the limit; ask an administrator to revoke some"
            )
        self._certificates.forget(oldest[0])
        self._database.execute("delete from members where name = ?", oldest)

    def _member_count(self) -> int:
        return int(self._database.execute("select count(*) from members").fetchone()[0])


def _new_id() -> str:
    return secrets.token_hex(16)


def _member(
    row: tuple[str, str, str, str, float, float | None, str], expires: float | None, fingerprint: str
) -> Member:
    member_id, name, role, labels, enrolled, revoked, token = row
    return Member(
        id=member_id,
        name=name,
        role=role,
        labels=json.loads(labels),
        enrolled_at=enrolled,
        expires_at=expires or 0.0,
        revoked_at=revoked or 0.0,
        fingerprint=fingerprint,
        token=token,
    )
