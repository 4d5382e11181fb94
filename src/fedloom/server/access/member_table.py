"""The table of a server's members, in its SQLite file: enrolled, revoked, labelled, listed."""

from __future__ import annotations

import itertools
import json
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedloom.core.errors import LimitExceeded, NotFound, RunExists
from fedloom.server.access.member_names import check_labels
from fedloom.server.access.tokens import Token

SCHEMA = """
create table if not exists members (
  name text primary key, role text not null, labels text not null, enrolled real not null, revoked real,
  id text not null default ''
);
"""
ADDED = {"token": "text not null default ''", "id": "text not null default ''"}
"""Columns missing from files of earlier versions."""
COLUMNS = "m.id, m.name, m.role, m.labels, m.enrolled, m.revoked, m.token"
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


class Members:
    """The table of members. Not thread-safe: call it with the registry's lock.

    Args:
        database: of the registry.
        now: the wall clock; seconds since 1970.
    """

    def __init__(self, database: sqlite3.Connection, now: Callable[[], float]) -> None:
        self._database, self._now = database, now
        self._database.execute("update members set id = lower(hex(randomblob(16))) where id = ''")

    def rows(self) -> list[Member]:
        """Return all members by name, revoked ones included, each with its newest certificate."""
        rows = self._database.execute(
            f"select {COLUMNS}, max(c.expires), c.fingerprint from members m "
            "left join certificates c on c.member = m.name group by m.name order by m.name"
        ).fetchall()
        return [member_of(row[:7], row[7], row[8] or "") for row in rows]

    def admitted(self) -> Mapping[str, Sequence[str]]:
        """Return the names of the members that each token has admitted, by the token's id."""
        found: dict[str, list[str]] = {}
        for name, token_id in self._database.execute("select name, token from members where token != ''"):
            found.setdefault(token_id, []).append(name)
        return found

    def put(self, name: str, role: str) -> None:
        """Add a member without a token, or put it back in good standing."""
        self._database.execute(
            "insert into members (name, role, labels, enrolled, id) values (?, ?, '{}', ?, ?) "
            "on conflict (name) do update set role = excluded.role, revoked = null",
            (name, role, self._now(), _new_id()),
        )

    def add(self, name: str, token: Token) -> Member:
        """Add a member that has joined with a token, in place of a revoked one of its name."""
        now, member_id = self._now(), _new_id()
        self._database.execute(
            "insert into members (name, role, labels, enrolled, token, id) values (?, ?, ?, ?, ?, ?) on conflict "
            "(name) do update set role = excluded.role, labels = excluded.labels, enrolled = excluded.enrolled, "
            "token = excluded.token, id = excluded.id, revoked = null",
            (name, token.role, json.dumps(dict(token.labels)), now, token.id, member_id),
        )
        return Member(id=member_id, name=name, role=token.role, labels=token.labels, enrolled_at=now, token=token.id)

    def revoke(self, name: str) -> str:
        """Revoke a member; returns the id of the token it joined with.

        Raises:
            NotFound: no such member, or revoked already.
        """
        row = self._database.execute(
            "update members set revoked = ? where name = ? and revoked is null returning token", (self._now(), name)
        ).fetchone()
        if row is None:
            raise NotFound(f"no member {name[:80]!r} in good standing; list them with `fedloom node list`")
        return str(row[0])

    def label(self, name: str, add: Mapping[str, str], remove: Sequence[str]) -> Mapping[str, str]:
        """Change a member's labels; returns all its labels.

        Raises:
            NotFound: no such member.
            BadMessage: labels out of their limits.
        """
        row = self._database.execute("select labels from members where name = ?", (name,)).fetchone()
        if row is None:
            raise NotFound(f"no member {name[:80]!r}; list them with `fedloom node list`")
        labels = {key: value for key, value in json.loads(row[0]).items() if key not in remove} | dict(add)
        check_labels(labels)
        self._database.execute("update members set labels = ? where name = ?", (json.dumps(labels), name))
        return labels

    def free_name(self, stem: str, first: int) -> str:
        """Return the first of STEM-first, STEM-first+1, … that no member in good standing has."""
        names = self._database.execute("select name from members where revoked is null").fetchall()
        taken = {name for (name,) in names}
        return next(name for number in itertools.count(first) if (name := f"{stem}-{number}") not in taken)

    def check_free(self, name: str) -> None:
        """Check whether a name may be given to a new member.

        Raises:
            RunExists: it belongs to a member in good standing.
        """
        row = self._database.execute("select 1 from members where name = ? and revoked is null", (name,)).fetchone()
        if row is not None:
            raise RunExists(f"{name!r} is already a member; choose another name, or revoke it first")

    def to_forget(self, name: str) -> str:
        """Return the longest revoked member if there is no room for one of this name; empty if there is room.

        Raises:
            LimitExceeded: all `MAX_MEMBERS` are in good standing.
        """
        known = self._database.execute("select 1 from members where name = ?", (name,)).fetchone()
        if known is not None or self._count() < MAX_MEMBERS:
            return ""
        oldest = self._database.execute(
            "select name from members where revoked is not null order by revoked limit 1"
        ).fetchone()
        if oldest is None:
            raise LimitExceeded(
                f"this server has {MAX_MEMBERS} members, the limit; ask an administrator to revoke some"
            )
        return str(oldest[0])

    def forget(self, name: str) -> None:
        """Delete a member whose certificates are deleted."""
        self._database.execute("delete from members where name = ?", (name,))

    def _count(self) -> int:
        return int(self._database.execute("select count(*) from members").fetchone()[0])


def _new_id() -> str:
    return secrets.token_hex(16)


def member_of(
    row: tuple[str, str, str, str, float, float | None, str], expires: float | None, fingerprint: str
) -> Member:
    """Return the member of a row of `COLUMNS`, with the expiry and the fingerprint of its certificate."""
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
