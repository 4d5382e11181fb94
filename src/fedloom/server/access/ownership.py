"""Restricts calls about a run to its owner and administrators."""

from __future__ import annotations

from fedloom.core.errors import Forbidden
from fedloom.server.access.gate import Caller
from fedloom.server.run_queue import RunQueue


def require_own_run(runs: RunQueue, caller: Caller, run_id: str) -> None:
    """Raise if a user is not the owner of a run.

    Raises:
        NotFound: there is no such run.
        Forbidden: it is another user's.
    """
    owner = runs.owner(run_id)
    if caller.role != "admin" and owner.id != caller.id:
        raise Forbidden(f"run {run_id!r} does not belong to {caller.name!r}; list your runs with `fedloom runs`")
