"""Join tokens in the registry's file: created, used, listed, revoked. Only digests of their secrets are stored."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedloom.core.errors import BadMessage, LimitExceeded, NotFound, Unauthenticated
from fedloom.core.identity import ROLES

SCHEMA = """
create table if not exists tokens (
  secret_sha256 text primary key, name text not null, role text not null, labels text not null,
  uses integer not null, used integer not null default 0, expires real not null
);
"""
ADDED = {"created": "real not null default 0", "maker": "text not null default ''", "revoked": "real"}
"""Columns missing from files of earlier versions."""
MAX_TTL_S = 30 * 86400.0
MAX_USES = 10_000
MAX_TOKENS = 10_000
"""Tokens in the file; unusable ones are forgotten for new ones."""
ID_DIGITS = 12
"""Hexadecimal digits of a token's id, which begin the digest of its secret."""
_COLUMNS = "secret_sha256, name, role, labels, uses, used, created, expires, revoked, maker"


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A join token in the registry; times in seconds since 1970, 0 if not yet."""

    id: str
    name: str
    role: str
    labels: Mapping[str, str] = field(default_factory=dict)
    uses: int = 1
    used: int = 0
    created_at: float = 0.0
    expires_at: float = 0.0
    revoked_at: float = 0.0
    maker: str = ""
    """The administrator who created it."""
    admitted: Sequence[str] = ()
    """Members it has admitted, by name."""


class Tokens:
    """The table of tokens. Not thread-safe: call it with the registry's lock.

    Args:
        database: of the registry.
        now: the wall clock; seconds since 1970.
    """

    def __init__(self, database: sqlite3.Connection, now: Callable[[], float]) -> None:
        self._database, self._now = database, now

    def create(self, wanted: Token, ttl_s: float) -> str:
        """Add a token; returns its secret.

        Raises:
            BadMessage: role, lifetime or number of uses out of limits.
            LimitExceeded: there are `MAX_TOKENS` usable tokens.
        """
        if wanted.role not in ROLES:
            raise BadMessage(f"role: expected one of {', '.join(ROLES)}, got {wanted.role[:40]!r}")
        if not 0 < ttl_s <= MAX_TTL_S or not 1 <= wanted.uses <= MAX_USES:
            raise BadMessage(
                f"token {wanted.name!r}: expected at most {MAX_TTL_S / 86400:.0f} days and 1 to {MAX_USES} "
                f"uses, got {ttl_s:g} s and {wanted.uses}"
            )
        secret, now = secrets.token_urlsafe(32), self._now()
        self._make_room()
        self._database.execute(
            "insert into tokens (secret_sha256, name, role, labels, uses, expires, created, maker) "
            "values (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                digest(secret),
                wanted.name,
                wanted.role,
                json.dumps(dict(wanted.labels)),
                wanted.uses,
                now + ttl_s,
                now,
                wanted.maker,
            ),
        )
        return secret

    def spend(self, secret: str) -> Token:
        """Use a token once; returns it as it is then.

        Raises:
            Unauthenticated: no such token, or it is revoked, used up or too old; which of these is not disclosed.
        """
        row = self._database.execute(
            "update tokens set used = used + 1 where secret_sha256 = ? and used < uses and expires > ? "
            f"and revoked is null returning {_COLUMNS}",
            (digest(secret), self._now()),
        ).fetchone()
        if row is None:
            raise Unauthenticated("join token invalid, expired, revoked or already used; request a new one")
        return _token(row)

    def rows(self, admitted: Mapping[str, Sequence[str]]) -> list[Token]:
        """Return all tokens, oldest first.

        Args:
            admitted: the members that each token has admitted, by the token's id.
        """
        rows = self._database.execute(f"select {_COLUMNS} from tokens order by created, rowid").fetchall()
        return [_token(row, admitted.get(row[0][:ID_DIGITS], ())) for row in rows]

    def end(self, token_id: str) -> None:
        """Revoke a token.

        Raises:
            NotFound: no usable token of this id.
        """
        if len(token_id) != ID_DIGITS or not self._end("substr(secret_sha256, 1, ?) = ?", (ID_DIGITS, token_id)):
            raise NotFound(f"no token {token_id[:80]!r} in use; list tokens with `fedloom token list`")

    def end_with(self, member: str, joined_by: str) -> list[str]:
        """Revoke the tokens a revoked member could rejoin with: the one it joined with, and its own.

        Args:
            member: its name.
            joined_by: id of the token it joined with; empty to leave that one valid.

        Returns:
            The ids of the tokens that have ended.
        """
        ended = self._end("substr(secret_sha256, 1, ?) = ?", (ID_DIGITS, joined_by)) if joined_by else []
        return ended + self._end("(maker = ? or (name = ? and uses = 1))", (member, member))

    def _end(self, which: str, values: tuple[object, ...]) -> list[str]:
        rows = self._database.execute(
            f"update tokens set revoked = ? where {which} and revoked is null and used < uses and expires > ? "
            "returning secret_sha256",
            (self._now(), *values, self._now()),
        ).fetchall()
        return [str(secret_sha256)[:ID_DIGITS] for (secret_sha256,) in rows]

    def _make_room(self) -> None:
        if self._count() < MAX_TOKENS:
            return
        self._database.execute(
            "delete from tokens where used >= uses or expires <= ? or revoked is not null", (self._now(),)
        )
        if self._count() >= MAX_TOKENS:
            raise LimitExceeded(
                f"{MAX_TOKENS} join tokens are usable, which is the limit; revoke some, wait until some have "
                "expired, or allow more uses per token"
            )

    def _count(self) -> int:
        return int(self._database.execute("select count(*) from tokens").fetchone()[0])


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret, hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(
    row: tuple[str, str, str, str, int, int, float, float, float | None, str], admitted: Sequence[str] = ()
) -> Token:
    secret_sha256, name, role, labels, uses, used, created, expires, revoked, maker = row
    return Token(
        id=secret_sha256[:ID_DIGITS],
        name=name,
        role=role,
        labels=json.loads(labels),
        uses=uses,
        used=used,
        created_at=created,
        expires_at=expires,
        revoked_at=revoked or 0.0,
        maker=maker,
        admitted=tuple(admitted),
    )
