"""Members of the server: join tokens, members (nodes and users), certificates; in the server's SQLite file.

A certificate is admitted when the registry has it, its member is not revoked, no newer one of the member has been used,
and it has not expired; the certificate's own content is never trusted.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fedloom.core.clock import SYSTEM_CLOCK
from fedloom.core.errors import Unauthenticated
from fedloom.server.access import certificates as certificate_table
from fedloom.server.access import member_table
from fedloom.server.access import tokens as token_table
from fedloom.server.access.certificates import REPLACED, Certificates
from fedloom.server.access.member_names import MAX_NAME, MAX_STEM, check_labels, check_name
from fedloom.server.access.member_table import COLUMNS, Member, Members, member_of
from fedloom.server.access.tokens import Token, Tokens
from fedloom.server.store.columns import add_columns

_TABLES = {"members": member_table, "certificates": certificate_table, "tokens": token_table}


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
        self._database.executescript("".join(table.SCHEMA for table in _TABLES.values()))
        for name, table in _TABLES.items():
            add_columns(self._database, name, table.ADDED)
        self._members = Members(self._database, now)
        self._tokens, self._certificates = Tokens(self._database, now), Certificates(self._database, now)
        self._admitted: dict[str, Member] = {}
        """Members in good standing by the certificate they showed, as of the database's change `_admitted_at`."""
        self._admitted_at = -1

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
                self._members.check_free(name)
            return self._tokens.create(wanted, ttl_s)

    def tokens(self) -> Sequence[Token]:
        """Return all tokens not yet forgotten, oldest first, with the members they admitted."""
        with self._lock:
            return self._tokens.rows(self._members.admitted())

    def end_token(self, token_id: str) -> Token:
        """Revoke a token; members it has admitted remain.

        Raises:
            NotFound: no usable token of this id.
        """
        with self._lock:
            self._tokens.end(token_id)
        return next(token for token in self.tokens() if token.id == token_id)

    def join(
        self, secret: str, sign: Callable[[str, str], x509.Certificate], place: str = ""
    ) -> tuple[Member, x509.Certificate]:
        """Spend one use of a token; all or nothing.

        Args:
            secret: the token's.
            sign: makes the certificate from the new member's name and role.
            place: of the new member's key; empty if it does not say.

        Raises:
            Unauthenticated: no such token, or it is revoked, used up or too old; which of these is not disclosed.
            RunExists: the name belongs to a member in good standing.
            LimitExceeded: there are `MAX_MEMBERS` in good standing already.
        """
        with self._lock:
            self._database.execute("begin immediate")
            try:
                member, certificate = self._join(secret, sign, place)
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")
        return member, certificate

    def enroll(self, name: str, role: str, certificate: x509.Certificate) -> None:
        """Enrol a member without a token (the server's administrator), and revoke its older certificates."""
        with self._lock:
            self._members.put(name, role)
            self._certificates.revoke_all(name)
            self._certificates.add(name, certificate)

    def renew(self, shown: str, certificate: x509.Certificate, place: str = "") -> None:
        """Add a member's new certificate for a place.

        Its first use revokes the one shown, unless that is the original's and this one is for a copy.

        Args:
            shown: fingerprint of the certificate the member shows.
            certificate: the new one.

        Raises:
            Unauthenticated: the shown one is not admitted (any more).
        """
        with self._lock:
            self._certificates.add(self._admit(shown).name, certificate, shown, place)

    def validity(self, shown: str) -> tuple[float, float]:
        """Return the seconds for which a certificate was issued, and those that are left, by the server's clock.

        Raises:
            Unauthenticated: it is not admitted (any more).
        """
        with self._lock:
            self._admit(shown)
            return self._certificates.validity(shown)

    def admit(self, fingerprint: str) -> Member:
        """Return the member whose certificate this is.

        Raises:
            Unauthenticated: the registry does not know it, it is revoked, or its time is over.
        """
        with self._lock:
            if (changes := self._database.total_changes) != self._admitted_at:  # anything may have changed
                self._admitted.clear()
                self._admitted_at = changes
            known = self._admitted.get(fingerprint)
            if known is None or known.expires_at <= self._now():
                self._admitted[fingerprint] = known = self._admit(fingerprint)
            return known

    def members(self) -> Sequence[Member]:
        """Return all members by name, revoked ones included."""
        with self._lock:
            return self._members.rows()

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
            token_id = self._members.revoke(name)
            self._certificates.revoke_all(name)
            return self._tokens.end_with(name, "" if keep_token else token_id)

    def label(self, name: str, add: Mapping[str, str], remove: Sequence[str]) -> Mapping[str, str]:
        """Change a member's labels; returns all its labels."""
        with self._lock:
            return self._members.label(name, add, remove)

    # Under the lock

    def _admit(self, fingerprint: str) -> Member:
        row = self._database.execute(
            f"select {COLUMNS}, c.expires, c.revoked, c.used, c.rowid from certificates c "
            "join members m on m.name = c.member where c.fingerprint = ?",
            (fingerprint,),
        ).fetchone()
        if row is None:
            raise Unauthenticated("this server does not know the caller's certificate; join with a new token")
        member, ended, used, number = member_of(row[:7], row[7], fingerprint), row[8], row[9], row[10]
        if not member.revoked_at and ended == REPLACED:
            raise Unauthenticated(
                f"a newer certificate of {member.name!r} has been used, which revoked this one; use the newer one. "
                "If this is a copy or an old backup of its identity, join with a new token"
            )
        if member.revoked_at or ended:
            raise Unauthenticated(f"{member.name!r} was revoked; join with a new token")
        if member.expires_at <= self._now():
            ended_at, now = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}" for at in (row[7], self._now()))
            raise Unauthenticated(
                f"the certificate of {member.name!r} has expired: it was valid until {ended_at} UTC, and by this "
                f"server's clock it is {now} UTC; join with a new token"
            )
        if not used:
            self._certificates.begin_use(member.name, number)
        return member

    def _join(
        self, secret: str, sign: Callable[[str, str], x509.Certificate], place: str
    ) -> tuple[Member, x509.Certificate]:
        token = self._tokens.spend(secret)
        name = token.name if token.uses == 1 else self._members.free_name(token.name, token.used)
        self._members.check_free(name)
        if forgotten := self._members.to_forget(name):
            self._certificates.forget(forgotten)
            self._members.forget(forgotten)
        certificate = sign(name, token.role)
        member = self._members.add(name, token)
        self._certificates.add(name, certificate, place=place)
        return member, certificate
