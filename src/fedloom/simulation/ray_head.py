"""Notices that the head of a Ray cluster is gone. Ray itself ends the whole process a minute later, without a trace."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from fedloom.simulation.ray_address import knock

_log = logging.getLogger(__name__)

VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's variable: seconds without its head after which Ray ends a process."""
_RAYS_LIMIT_S = 60.0
_SHARE = 0.6
"""Fraction of Ray's limit after which the head counts as gone; the rest is for ending the run in order."""
_EVERY_S = 2.0


def patience_s(environment: Mapping[str, str]) -> float:
    """Return the seconds a head may be silent: a fraction of those after which Ray ends the process."""
    try:
        limit_s = float(environment.get(VARIABLE, _RAYS_LIMIT_S))
    except ValueError:
        limit_s = _RAYS_LIMIT_S
    return _SHARE * limit_s


class RayHead:
    """The head of the cluster this process has joined.

    Args:
        address: HOST:PORT of the head, as this process reaches it; empty if it does not (Ray Client).
        patience_s: seconds of silence after which the head counts as gone.
        reach: raises OSError if nothing listens at an address.
        clock: seconds that pass.
    """

    def __init__(
        self,
        address: str,
        patience_s: float,
        reach: Callable[[str], None] = knock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._patience_s, self._reach, self._clock = address, patience_s, reach, clock
        self._asked = self._answered = clock()
        self._trouble = ""

    def look(self) -> str:
        """Return why the head counts as gone; empty as long as it does not. Queries it every few seconds at most."""
        now = self._clock()
        if self._address and now - self._asked >= _EVERY_S:
            self._ask(now)
        silent_s = self._clock() - self._answered if self._trouble else 0.0
        if silent_s < self._patience_s:
            return ""
        return f"the Ray head at {self._address} has not answered for {silent_s:.0f} s ({self._trouble})"

    def trouble(self) -> str:
        """Ask the head now; returns why it does not answer, or nothing if it does."""
        if self._address:
            self._ask(self._clock())
        return f"the Ray head at {self._address} does not answer ({self._trouble})" if self._trouble else ""

    def _ask(self, now: float) -> None:
        known = self._trouble
        try:
            self._reach(self._address)
            self._answered, self._trouble = now, ""
        except OSError as exc:
            self._trouble = f"{type(exc).__name__}: {exc}"
        self._asked = self._clock()
        if self._trouble and not known:
            _log.warning(
                "the Ray head at %s does not answer (%s); the run ends unless it does within %.0f s",
                self._address,
                self._trouble,
                self._patience_s,
            )
