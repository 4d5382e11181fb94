"""One session of a run: from its start or resume to its summary, whatever ends it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, Interrupted, PluginInvalid, RunFailed
from fedloom.core.events import ClientsDone, Event, Notice, RunFinished, RunStarted
from fedloom.core.history import RoundRecord, RunSummary, Traffic
from fedloom.core.protocols import Sink
from fedloom.core.records import Arrays, arrays_sha256
from fedloom.server.rounds.cross_sites import CROSS_SITES
from fedloom.server.rounds.loop import Loop
from fedloom.server.rounds.record import not_finite
from fedloom.server.rounds.run_services import FleetAccess, RunOutputs, RuntimeInfo
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.run_store import RunStore

_OF_DATA = ("num_train", "num_test", "num_labels", "left_out", "remarks")
"""What a summary has of the workload's statement about its data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a session ended; `error` is the reason of an early end."""

    summary: RunSummary
    history: Sequence[RoundRecord]
    arrays: Arrays
    error: FedloomError | None = None


def run_session(
    experiment: Experiment,
    store: RunStore,
    fleet: FleetAccess,
    sinks: Sequence[Sink],
    *,
    stop: threading.Event,
    journal: AnswerJournal | None = None,
) -> Outcome:
    """Run the remaining rounds. Errors and interrupts end them in order: everything saved, the summary written.

    Args:
        experiment: the resolved experiment.
        store: already begun; if it has a checkpoint, the run resumes from there.
        fleet: the way to the agents.
        sinks: take every event, after the store.
        stop: ends the session with status `interrupted`.
        journal: stores accepted results until a checkpoint has them.
    """

    def emit(event: Event) -> None:
        if not isinstance(event, ClientsDone):  # progress for watchers; the round's record is complete
            store.append_event(event)
        for sink in sinks:
            sink.write(event)

    loop = Loop(experiment, fleet, RunOutputs(store=store, emit=emit, journal=journal), stop)
    error: FedloomError | None = None
    arrays: Arrays = {}
    try:
        with _as_ours(loop, store):
            first = loop.prepare()
            emit(_started(experiment, loop, fleet.place(), first))
            for message in store.changed_code():
                emit(Notice(run_id=store.run_id, message=message))
            loop.work()
            arrays = loop.final_arrays()
            store.save_model(arrays)
            loop.require_finished()
    except FedloomError as exc:
        error = exc
        arrays = loop.final_arrays()
    finally:
        loop.close()
        fleet.coordinator.forget_run(store.run_id, resumable=error is not None)
    ended = _Ended(experiment=experiment, store=store, loop=loop, history=store.rounds(), arrays=arrays)
    summary = ended.summary(fleet.place(), error)
    try:
        store.save_summary(summary)
        emit(RunFinished(run_id=store.run_id, summary=summary))
    except FedloomError as exc:
        if error is None:  # report a full disk, unless done already: what is not saved does not count
            error = exc
            summary = ended.summary(fleet.place(), error)
    return Outcome(summary=summary, history=ended.history, arrays=arrays, error=error)


def _started(experiment: Experiment, loop: Loop, place: RuntimeInfo, first_round: int) -> RunStarted:
    """Return the event that opens the session."""
    return RunStarted(
        run_id=loop.run.run_id,
        name=experiment.name,
        rounds=experiment.max_rounds,
        first_round=first_round,
        clients=loop.population,
        cohort=experiment.cohort_of(loop.population),
        group_size=experiment.group_size,
        num_parameters=sum(array.size for array in loop.arrays().values()),
        runtime=place.runtime,
        workers=place.workers,
        where=place.where,
        data=dict(loop.info.data),
    )


@contextlib.contextmanager
def _as_ours(loop: Loop, store: RunStore) -> Iterator[None]:
    """Map Ctrl-C and unexpected errors to errors of the catalogue."""
    try:
        yield
    except PluginInvalid as exc:
        if not store.rounds():
            raise
        done = loop.rounds_done
        advice = f"In round {done + 1}; the run can be resumed from round {done}"
        raise RunFailed(f"{exc}. {advice}") from exc.__cause__ or exc
    except FedloomError:
        raise
    except KeyboardInterrupt as exc:
        raise Interrupted(f"stopped after round {loop.rounds_done}") from exc
    except BaseException as exc:  # a strategy or selection that calls sys.exit fails its run, not the server
        raise RunFailed(
            f"round {loop.rounds_done + 1} failed: {type(exc).__name__}: {exc}. "
            f"Rounds up to {loop.rounds_done} are saved"
        ) from exc


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ended:
    """A session after its last round."""

    experiment: Experiment
    store: RunStore
    loop: Loop
    history: Sequence[RoundRecord]
    arrays: Arrays

    def summary(self, place: RuntimeInfo, error: FedloomError | None) -> RunSummary:
        """Return the content of `summary.json`."""
        experiment, folder = self.experiment, self.store.folder
        return RunSummary(
            run_id=self.store.run_id,
            run_dir=str(folder) if folder is not None else None,
            name=experiment.name,
            status="done" if error is None else "interrupted" if isinstance(error, Interrupted) else "failed",
            rounds=self.loop.rounds_done,
            metrics=self._metrics(),
            best=None if self.loop.best is None else self.loop.best.found(self.loop.rounds_done),
            not_finite=self._not_finite(),
            **sum((record.traffic for record in self.history), Traffic()).model_dump(),
            seconds=self.loop.seconds,
            model_sha256=arrays_sha256(self.arrays) if error is None and self.arrays else None,
            num_parameters=sum(array.size for array in self.arrays.values()),
            seed=experiment.seed,
            group_size=experiment.group_size,
            runtime=place.runtime,
            workers=place.workers,
            failures=sum(len(record.failures) for record in self.history),
            data={name: self.loop.info.data[name] for name in _OF_DATA if name in self.loop.info.data},
            cross_sites=dict(self.history[-1].sections.get(CROSS_SITES, {})) if self.history else {},
            error=None if error is None else f"{type(error).__name__}: {error}",
            environment=_environment(),
        )

    def _not_finite(self) -> tuple[str, ...]:
        """Return what of the last evaluation has no finite value."""
        last = self.history[-1] if self.history else None
        if last is not None and last.sections.get("evaluation", {}).get("parts") == 0:
            return ("evaluation",)
        evaluated = [record.evaluation for record in self.history if record.evaluation]
        return not_finite(evaluated[-1], self.loop.info.exponentials) if evaluated else ()

    def _metrics(self) -> dict[str, float]:
        """Return the final model's evaluation; the last round's training metrics if nothing was evaluated."""
        if self.loop.best is not None and self.loop.best.evaluation is not None:
            return dict(self.loop.best.evaluation)
        evaluated = [record.evaluation for record in self.history if record.evaluation]
        return evaluated[-1] if evaluated else (self.history[-1].metrics if self.history else {})


def _environment() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in ("fedloom", "torch", "numpy", "grpcio", "ray", "flwr", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
