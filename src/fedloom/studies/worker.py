"""A process that does a study's runs, one after the other: `python -m fedloom.studies.worker`.

It reads one JSON object a line on its standard input, `{"folder", "experiment", "tests"}`, and writes one a line on
its standard output: `{"round", "rounds"}` after each round and `{"ended", "error"}` at the end, `ended` being `done`,
`failed` or `interrupted`. SIGTERM ends the run in order, saved. The process stays warm between runs and leaves with its
input.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fedloom.core.errors import FedloomError, Interrupted
from fedloom.core.events import Event, RoundFinished, RunStarted
from fedloom.core.records import Info, JsonObject
from fedloom.core.run_files import EXPERIMENT

_PR_SET_PDEATHSIG = 1
Say = Callable[..., None]


class _Rounds:
    """Passes a run's progress on."""

    def __init__(self, say: Say) -> None:
        self._say, self._rounds = say, 0

    def write(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._rounds = event.rounds or 0
                self._say(round=event.first_round - 1, rounds=self._rounds)
            case RoundFinished():
                self._say(round=event.record.round, rounds=self._rounds)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""


def do_run(folder: Path, experiment: JsonObject, say: Say, tests: Sequence[Info] = ()) -> dict[str, str]:
    """Run one run in its folder, or resume the existing one, then the tests next to it; returns how it ended."""
    from fedloom import api
    from fedloom.core.config import Experiment
    from fedloom.studies import held_out, machine
    from fedloom.studies.runner import is_done
    from fedloom.studies.static_tests import do_test, from_message

    try:
        finished = is_done(folder)  # and only a test beside it is missing: nobody knows where it was made
        if (folder / EXPERIMENT).is_file():
            result = api.resume(folder, sinks=[_Rounds(say)])
        else:
            shutil.rmtree(folder, ignore_errors=True)  # killed before it had written its experiment
            result = api.run(Experiment.parse(experiment), out=folder, sinks=[_Rounds(say)])
        if not finished:
            held_out.write(result.arrays, Experiment.parse(experiment), folder)
            machine.write(folder)
        for message in tests:
            do_test(from_message(message), Experiment.parse(experiment), folder)
    except Interrupted:
        return {"ended": "interrupted", "error": ""}
    except FedloomError as exc:
        return {"ended": "failed", "error": str(exc)}
    except Exception as exc:  # one broken run must not end the study
        return {"ended": "failed", "error": f"{type(exc).__name__}: {exc}"}
    return {"ended": "done", "error": ""}


def main() -> None:
    """Serve until the input ends."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    protocol = os.dup(1)
    os.dup2(2, 1)  # a run's output goes to the log, not into the protocol

    def say(**values: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(protocol, json.dumps(values).encode() + b"\n")

    for line in sys.stdin:
        task = json.loads(line)
        say(**do_run(Path(task["folder"]), task["experiment"], say, task["tests"]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
