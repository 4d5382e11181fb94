"""Collects the verdicts of connected nodes on a run that is being submitted."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedloom.core.clock import Clock
from fedloom.core.messages import Inquiry, RunSpec, Verdict
from fedloom.server.fleet.nodes import Mailbox

WAIT_S = 5.0
"""Seconds to wait for all verdicts; a node at work replies after its current group."""
SETTLED_S = 1.0
"""Seconds after which one node that would do the run is enough."""
MAX_NODES = 256
"""Limit of nodes queried about one run; further connected ones count as willing."""


@dataclass
class _OpenInquiry:
    nodes: frozenset[str]
    verdicts: dict[str, Verdict] = field(default_factory=dict)


class Inquiries:
    """Open inquiries. Thread-safe.

    Args:
        clock: for waiting.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._open: dict[str, _OpenInquiry] = {}

    def ask(self, spec: RunSpec, mailboxes: Mapping[str, Mailbox]) -> dict[str, Verdict]:
        """Return the verdicts of nodes on a run; those that have not replied in time are missing.

        Args:
            spec: the run.
            mailboxes: of the nodes, by name.
        """
        pending = _OpenInquiry(frozenset(list(mailboxes)[:MAX_NODES]))
        inquiry = Inquiry(id=secrets.token_hex(8), spec=spec)
        with self._changed:
            self._open[inquiry.id] = pending
            for name in pending.nodes:
                mailboxes[name].put(inquiry)
            self._clock.wait_for(self._changed, lambda: _settled(pending), SETTLED_S)
            if not any(not verdict.kind for verdict in pending.verdicts.values()):
                self._clock.wait_for(self._changed, lambda: _settled(pending), WAIT_S - SETTLED_S)
            del self._open[inquiry.id]
            return dict(pending.verdicts)

    def answer(self, node: str, verdict: Verdict) -> None:
        """Add a node's verdict; one that was not requested, or is late, is dropped."""
        with self._changed:
            pending = self._open.get(verdict.id)
            if pending is not None and node in pending.nodes:
                pending.verdicts.setdefault(node, verdict)
                self._changed.notify_all()


def _settled(pending: _OpenInquiry) -> bool:
    return len(pending.verdicts) == len(pending.nodes)
