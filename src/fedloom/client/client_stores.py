"""Storage of clients' state between their jobs: on the server, or on this node."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fedloom.core import frames
from fedloom.core.config import NODE_STATE_ROUNDS
from fedloom.core.errors import BadFrame, StorageFull
from fedloom.core.files import replacing
from fedloom.core.messages import Group, PayloadRef
from fedloom.core.records import Record
from fedloom.core.user_folders import home_or_temporary

STALE_S = 30 * 86400.0
"""Seconds after which the states of a run that was not resumed are removed."""
_OWNER = "owner"
"""Key of a stored state's info: the run and the client it is of."""


class ClientStore(Protocol):
    """Stores clients' states for their next jobs."""

    def read(self, group: Group, client: int) -> Record | None:
        """Return the state last stored for a client before the group's exchange."""

    def keep(self, group: Group, client: int, state: Record) -> PayloadRef | None:
        """Store a client's state; the reference returned is sent with the group's result."""


class ServerStore:
    """The default: a client's state arrives with a group and leaves with its result.

    Args:
        fetch: gets the record behind a reference.
        store: puts a run's record where the server can read it.
    """

    def __init__(self, fetch: Callable[[PayloadRef], Record], store: Callable[[Record, str], PayloadRef]) -> None:
        self._fetch, self._store = fetch, store

    def read(self, group: Group, client: int) -> Record | None:
        ref = group.states.get(client)
        return self._fetch(ref) if ref is not None else None

    def keep(self, group: Group, client: int, state: Record) -> PayloadRef | None:
        return self._store(state, group.key.run_id)


class NodeStore:
    """State that never leaves the node: `FOLDER/RUN/CLIENT/ROUND-EXCHANGE.safetensors`.

    Args:
        folder: the agent's own. A run's folder in it is named by the digest of the run's id, which is a server's word.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looked = False

    def read(self, group: Group, client: int) -> Record | None:
        """Read the newest state from before the group's exchange.

        Raises:
            BadFrame: the file is damaged, or is the state of another run or client.
        """
        found, run_id = self._versions(group.key.run_id, client), group.key.run_id
        older = [at for at in found if at < (group.key.round, group.key.exchange)]
        if not older:
            return None
        path = found[max(older)]
        record = frames.decode(path.read_bytes())
        owner = record.info.get(_OWNER)
        if owner != {"run": run_id, "client": client}:
            raise BadFrame(
                f"{path}: expected the state of client {client} of run {run_id!r}, found one of {owner}. It was copied "
                "from elsewhere: restore the file, or remove it to go on without it"
            )
        return record

    def keep(self, group: Group, client: int, state: Record) -> PayloadRef | None:
        """Write a client's state atomically; a few older rounds' states are retained.

        Raises:
            StorageFull: it cannot be written.
        """
        self._drop_stale()
        folder = self._of(group.key.run_id) / str(client)
        path = folder / f"{group.key.round}-{group.key.exchange}.safetensors"
        owner = {"run": group.key.run_id, "client": client}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(path, private=True) as file:
                for piece in frames.pieces(replace(state, info={**state.info, _OWNER: owner})):
                    file.write(piece)
        except OSError as exc:
            raise StorageFull(
                f"the state of client {client} cannot be written to {path}: {exc.strerror}. Free disk space there"
            ) from exc
        found = self._versions(group.key.run_id, client)
        retained = sorted({round_number for round_number, _ in found})[-NODE_STATE_ROUNDS:]
        for at in [at for at in found if at[0] < retained[0]]:
            found[at].unlink(missing_ok=True)
        return None

    def forget(self, run_id: str) -> None:
        """Remove all states of a run that is over for good."""
        shutil.rmtree(self._of(run_id), ignore_errors=True)

    def _drop_stale(self) -> None:
        """Remove, once, the states of failed runs that were not resumed."""
        if self._looked or not self._folder.is_dir():
            return
        self._looked = True
        for run in self._folder.iterdir():
            newest = max((path.stat().st_mtime for path in run.rglob("*")), default=0.0)
            if newest < time.time() - STALE_S:
                shutil.rmtree(run, ignore_errors=True)

    def _of(self, run_id: str) -> Path:
        return self._folder / hashlib.sha256(run_id.encode()).hexdigest()[:32]

    def _versions(self, run_id: str, client: int) -> dict[tuple[int, int], Path]:
        """Return a client's states by round and index of their exchange."""
        found: dict[tuple[int, int], Path] = {}
        for path in (self._of(run_id) / str(client)).glob("*-*.safetensors"):
            round_number, exchange = path.stem.split("-")
            if not path.name.startswith("."):
                found[int(round_number), int(exchange)] = path
        return found


def default_folder(node: str) -> Path:
    """Return the folder for clients' states of an agent that was given none: below the user's state folder."""
    home = home_or_temporary("XDG_STATE_HOME", ".local/state", "fedloom")
    return home / "nodes" / hashlib.sha256(node.encode()).hexdigest()[:16]
