"""Certificates of members, in the server's SQLite file: added, used for the first time, revoked."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes

SCHEMA = """
create table if not exists certificates (
  fingerprint text primary key, member text not null references members (name), expires real not null,
  issued real not null, revoked integer not null default 0
);
create index if not exists certificates_of on certificates (member);
"""
ADDED = {"used": "integer not null default 0"}
"""Columns missing from files of earlier versions."""
REVOKED, REPLACED = 1, 2
"""Values of `certificates.revoked`: revoked with its member, or once a newer certificate of it had been used."""
MAX_CERTIFICATES = 8
"""Certificates of one member besides the one it uses: the newest ones."""


class Certificates:
    """The table of certificates. Not thread-safe: call it with its owner's lock.

    Args:
        database: the server's.
        now: the wall clock; seconds since 1970.
    """

    def __init__(self, database: sqlite3.Connection, now: Callable[[], float]) -> None:
        self._database, self._now = database, now

    def add(self, member: str, certificate: x509.Certificate, shown: str = "") -> None:
        """Add a member's certificate; of its older ones the newest are retained, and the one it shows."""
        self._database.execute(
            "insert into certificates (fingerprint, member, expires, issued) values (?, ?, ?, ?)",
            (fingerprint_of(certificate), member, certificate.not_valid_after_utc.timestamp(), self._now()),
        )
        self._database.execute(
            "delete from certificates where member = ? and fingerprint != ? and rowid not in "
            "(select rowid from certificates where member = ? order by rowid desc limit ?)",
            (member, shown, member, MAX_CERTIFICATES),
        )

    def begin_use(self, member: str, number: int) -> None:
        """Record the first use of a certificate, by its row, which revokes the member's older ones."""
        self._database.execute("update certificates set used = 1 where rowid = ?", (number,))
        self._database.execute(
            "update certificates set revoked = ? where member = ? and rowid < ? and revoked = 0",
            (REPLACED, member, number),
        )

    def revoke_all(self, member: str) -> None:
        """Revoke every certificate of a member."""
        self._database.execute("update certificates set revoked = ? where member = ?", (REVOKED, member))

    def forget(self, member: str) -> None:
        """Delete the certificates of a member that is forgotten."""
        self._database.execute("delete from certificates where member = ?", (member,))


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the name of a certificate in the registry."""
    return certificate.fingerprint(hashes.SHA256()).hex()
