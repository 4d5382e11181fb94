"""Certificates of members, in the server's SQLite file: added, used for the first time, revoked.

A certificate is for a place: the folder of an identity on a machine. Of copies of one identity, the original is the
place of the member's oldest certificate that is in use. Its renewals end the certificates of copies; a copy's renewal
ends nothing but the copy's older ones, so that a copy never costs the original its membership.
"""

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
ADDED = {"used": "integer not null default 0", "place": "text not null default ''"}
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

    def add(self, member: str, certificate: x509.Certificate, shown: str = "", place: str = "") -> None:
        """Add a member's certificate for a place.

        Of its older ones the newest are retained, the one it shows, and the original's.
        """
        expires = certificate.not_valid_after_utc.timestamp()
        self._database.execute(
            "insert into certificates (fingerprint, member, expires, issued, place) values (?, ?, ?, ?, ?)",
            (fingerprint_of(certificate), member, expires, self._now(), place),
        )
        original = self._original(member)
        self._database.execute(
            "delete from certificates where member = ? and fingerprint != ? and rowid != ? and rowid not in "
            "(select rowid from certificates where member = ? order by rowid desc limit ?)",
            (member, shown, original[0] if original else 0, member, MAX_CERTIFICATES),
        )

    def validity(self, fingerprint: str) -> tuple[float, float]:
        """Return the seconds for which a certificate was issued, and those that are left. Raises `KeyError`."""
        row = self._database.execute(
            "select issued, expires from certificates where fingerprint = ?", (fingerprint,)
        ).fetchone()
        if row is None:
            raise KeyError(fingerprint)
        return row[1] - row[0], row[1] - self._now()

    def begin_use(self, member: str, number: int) -> None:
        """Record the first use of a certificate, by its row, which revokes older ones of the member.

        All of them if it is the original's, otherwise those of its own place.
        """
        (place,) = self._database.execute("select place from certificates where rowid = ?", (number,)).fetchone()
        original = self._original(member)
        ends_all = original is None or original[1] == place
        self._database.execute("update certificates set used = 1 where rowid = ?", (number,))
        self._database.execute(
            "update certificates set revoked = ? where member = ? and rowid < ? and revoked = 0 and (? or place = ?)",
            (REPLACED, member, number, ends_all, place),
        )

    def _original(self, member: str) -> tuple[int, str] | None:
        """Return the row and the place of a member's oldest certificate in use, or None."""
        row = self._database.execute(
            "select rowid, place from certificates where member = ? and used = 1 and revoked = 0 and expires > ? "
            "order by rowid limit 1",
            (member, self._now()),
        ).fetchone()
        return None if row is None else (int(row[0]), str(row[1]))

    def revoke_all(self, member: str) -> None:
        """Revoke every certificate of a member."""
        self._database.execute("update certificates set revoked = ? where member = ?", (REVOKED, member))

    def forget(self, member: str) -> None:
        """Delete the certificates of a member that is forgotten."""
        self._database.execute("delete from certificates where member = ?", (member,))


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the name of a certificate in the registry."""
    return certificate.fingerprint(hashes.SHA256()).hex()
