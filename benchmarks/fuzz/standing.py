"""What was there before the first broken message, and must be there after each: members, tokens, files."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Self

import grpc

from benchmarks.fuzz.samples import HONEST, NODE, PASSING, VICTIMS
from benchmarks.fuzz.server import OWNER, UnderTest
from fedloom.client.admin import AdminClient, MemberRow
from fedloom.client.control import ControlClient
from fedloom.client.enroll import join, renew
from fedloom.client.link import connect, connect_trusting
from fedloom.core.errors import FedloomError, Unauthenticated
from fedloom.core.identity import Identity, JoinToken

USER, ADMIN = "fuzz-user", "fuzz-admin"
_LABELS = {"kept": "yes"}
_STATE = {
    "fedloom.sqlite", "fedloom.sqlite-wal", "fedloom.sqlite-shm", "lock", "runs", "authority", "admin",
    "authority/authority.pem", "authority/authority-key.pem", "admin/key.pem", "admin/certificate.pem",
    "admin/authority.pem", "admin/server.json", "admin/receipt.json", "audit.jsonl",
}  # fmt: skip
_RUN = re.compile(r"runs/[0-9]{8}-[0-9]{6}-[a-z0-9-]{1,46}(/[a-z.]+)?")
"""Files of a state folder, and of its runs."""


class Standing:
    """Members nobody names in a broken message, and tokens nobody shows in one.

    Args:
        server: with members.
        folder: for identities.
    """

    def __init__(self, server: UnderTest, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._admin = AdminClient(Identity.load(server.folder / "state" / "admin"), timeout_s=60.0)
        made = {HONEST: "node", OWNER: "user", NODE: "node", PASSING: "node", USER: "user", ADMIN: "admin"}
        self._identities = {name: self._joined(name, role) for name, role in made.items()}
        for name in VICTIMS:
            self._joined(name, "node")
        self._admin.label(HONEST, _LABELS)
        self._many, self._once = self._token("many", uses=10_000), self._token("once-0")
        self._before, self._looks = self._members(), 0

    @property
    def authority(self) -> bytes:
        """The certificate of the server's authority."""
        return self._identities[NODE].authority

    def identity(self, name: str) -> Identity:
        """Of a member the fuzz speaks as."""
        return self._identities[name]

    def doors(self) -> dict[str, grpc.Channel]:
        """A connection for each service, as a member it is for."""
        address = f"127.0.0.1:{self._server.reported['enroll port']}"
        of = {
            "Fleet": NODE,
            "Fleet/Register": PASSING,
            "Control": USER,
            "Results": USER,
            "Credentials": NODE,
            "Admin": ADMIN,
        }
        doors = {service: connect(self._identities[name].address, self.identity(name)) for service, name in of.items()}
        return doors | {"Enroll": connect_trusting(address, self.authority)}

    def wrong(self) -> list[str]:
        """What has changed that should not have; tokens are spent on finding out."""
        self._looks += 1
        found: list[str] = []
        now = self._members()
        for name, row in self._before.items():
            if now.get(name) != row:
                found.append(f"member {name!r} was {row}, is {now.get(name)}")
        for what, ask in {
            "the token of many uses": lambda: join(self._many.encode(), self._folder / f"many-{self._looks}"),
            "the unspent token": lambda: join(self._once.encode(), self._folder / f"once-{self._looks}"),
            "the honest node's certificate": lambda: renew(self._identities[HONEST]),
            "the owner's run": self._run_is_queued,
        }.items():
            try:
                ask()
            except (FedloomError, AssertionError) as exc:
                found.append(f"{what}: {exc}")
        spent, self._once = self._once, self._token(f"once-{self._looks}")
        two = self._token("two", uses=2)
        for number in (1, 2):
            join(two.encode(), self._folder / f"two-{self._looks}-{number}")
        found += self._dead("spent twice of twice", two) + self._dead("spent in the last slice", spent)
        late = self._admin.create_token("late", ttl_s=0.001)
        time.sleep(0.01)
        return found + self._dead("too old", late) + self._strange_files()

    def close(self) -> None:
        """End the administrator's connection."""
        self._admin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _token(self, name: str, role: str = "node", uses: int = 1) -> JoinToken:
        return self._admin.create_token(name, role=role, ttl_s=7200.0, uses=uses)

    def _joined(self, name: str, role: str) -> Identity:
        return join(self._token(name, role).encode(), self._folder / name)

    def _dead(self, what: str, token: JoinToken) -> list[str]:
        """Whether a token still lets somebody in."""
        try:
            name = join(token.encode(), self._folder / f"dead-{self._looks}-{what}").name
        except Unauthenticated:
            return []
        except FedloomError as exc:
            return [f"the token {what}: {exc!r}"]
        return [f"the token {what} let {name!r} in"]

    def _members(self) -> dict[str, MemberRow]:
        """Those that stay, without what renewing changes."""
        names = {*self._identities, "server-admin"}
        return {row.name: _lasting(row) for row in self._admin.members() if row.name in names}

    def _run_is_queued(self) -> None:
        admin = Identity.load(self._server.folder / "state" / "admin")  # the run's owner is no member here
        with ControlClient(admin.address, identity=admin) as control:
            rows = [(row.run_id, row.status) for row in control.runs() if row.run_id == self._server.reported["run"]]
        assert rows == [(self._server.reported["run"], "queued")], rows

    def _strange_files(self) -> list[str]:
        """Files that a name or a text has made."""
        state, here = self._server.folder / "state", self._server.folder / "here"
        found = [path for path in sorted(self._server.folder.rglob("*")) if path not in (state, here)]
        return [f"a file nobody expects: {path}" for path in found if not _expected(path, state)]


def _expected(path: Path, state: Path) -> bool:
    within = str(path.relative_to(state)) if path.is_relative_to(state) else ""
    return within in _STATE or _RUN.fullmatch(within) is not None


def _lasting(row: MemberRow) -> MemberRow:
    return MemberRow(
        name=row.name,
        role=row.role,
        labels=row.labels,
        enrolled_at=row.enrolled_at,
        expires_at=0.0 if row.expires_at > time.time() else -1.0,
        revoked_at=row.revoked_at,
        fingerprint="" if row.fingerprint else "none",
    )
