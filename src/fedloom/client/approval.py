"""A command of the node's owner that approves runs: called once for each run, with the run on its stdin."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from fedloom.client.owner_commands import LATER, ask
from fedloom.core.config import Settings
from fedloom.core.errors import PolicyRefused
from fedloom.core.messages import RunSpec

MAX_DECISIONS = 1024
"""Decisions that are remembered."""


class Approval(Settings):
    """A command that decides whether a run may be done here.

    It reads one JSON object on stdin: `run` (its id; `submission` while it is being submitted), `submitter` and `role`
    as the server states them, and `experiment` as the server sent it. Exit status 0 approves, 75 asks to be asked
    again, any other one refuses; the first line it prints is the reason.
    """

    command: tuple[str, ...] = ()
    """Program and arguments; empty: every run that the rest of the policy allows is approved."""
    timeout_s: Annotated[float, Field(gt=0.0)] = 30.0
    """Seconds after which a command without an exit counts as a refusal."""
    again_s: Annotated[float, Field(gt=0.0)] = 300.0
    """Seconds after which a run that was not approved is asked about again, if the server still wants it."""


class Approver:
    """Calls the command once for each run, and caches its decisions.

    Args:
        settings: the policy's.
        clock: seconds that pass; for tests.
    """

    def __init__(self, settings: Approval, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._decided: OrderedDict[str, tuple[float, int, str]] = OrderedDict()

    def admit(self, spec: RunSpec) -> None:
        """Check whether a run is approved.

        Raises:
            PolicyRefused: it is not, or not yet.
        """
        if not self._settings.command:
            return
        text = json.dumps(
            {
                "run": spec.run_id,
                "submitter": spec.submitter_name,
                "role": spec.submitter_role,
                "experiment": spec.experiment,
            },
            sort_keys=True,
        )
        status, reason = self._decision(text)
        if status:
            waits = status == LATER
            raise PolicyRefused(
                f"the run is not approved{' yet' if waits else ''}: {reason}",
                kind="approval",
                retry_s=self._settings.again_s if waits else 0.0,
            )

    def _decision(self, text: str) -> tuple[int, str]:
        key, now = hashlib.sha256(text.encode()).hexdigest(), self._clock()
        known = self._decided.get(key)
        if known is None or (known[1] and now - known[0] >= self._settings.again_s):
            settings = self._settings
            known = (now, *ask(settings.command, settings.timeout_s, text, what="the approval command"))
            self._decided[key] = known
            if len(self._decided) > MAX_DECISIONS:
                self._decided.popitem(last=False)
        return known[1], known[2]
