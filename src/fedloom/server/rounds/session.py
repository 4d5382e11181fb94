"""One session of a run: from its start or resume to its summary, whatever ends it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, Interrupted, RunFailed
from fedloom.core.events import ClientsDone, Event, RunFinished, RunStarted
from fedloom.core.history import RoundRecord, RunSummary, Traffic
from fedloom.core.protocols import Sink
from fedloom.core.records import Arrays, arrays_sha256
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.rounds.loop import Loop
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.run_store import RunStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a session's clients run, for people."""

    runtime: str
    workers: int
    where: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a session ended; `error` is what ended it early."""

    summary: RunSummary
    history: Sequence[RoundRecord]
    arrays: Arrays
    error: FedloomError | None = None


def run_session(
    experiment: Experiment,
    store: RunStore,
    coordinator: Coordinator,
    place: Callable[[], Place],
    sinks: Sequence[Sink],
    *,
    stop: threading.Event,
    pump: Callable[[], None] | None = None,
    patience_s: float | None = None,
    journal: AnswerJournal | None = None,
) -> Outcome:
    """Do what is left of a run. Errors and interrupts end it in order: everything saved, the summary written.

    Args:
        experiment: the resolved experiment.
        store: begun already; where it has a checkpoint, the run goes on from there.
        coordinator: the way to the agents.
        place: where the clients run; asked once the first agent has answered.
        sinks: take every event, after the store.
        stop: ends the session with status `interrupted`.
        pump: does an agent's work in this thread (inline runtime).
        patience_s: seconds without any agent before the run fails; None waits for ever.
        journal: keeps accepted answers until a checkpoint has them.
    """

    def emit(event: Event) -> None:
        if not isinstance(event, ClientsDone):  # progress for those who watch; the round's record has it all
            store.append_event(event)
        for sink in sinks:
            sink.write(event)

    loop = Loop(experiment, store, coordinator, emit, stop=stop, pump=pump, patience_s=patience_s, journal=journal)
    error: FedloomError | None = None
    arrays: Arrays = {}
    try:
        with _as_ours(loop):
            first = loop.prepare()
            arrays = loop.arrays()
            at = place()
            emit(
                RunStarted(
                    run_id=store.run_id,
                    name=experiment.name,
                    rounds=experiment.max_rounds,
                    first_round=first,
                    clients=experiment.clients,
                    cohort=experiment.cohort_size,
                    group_size=experiment.group_size,
                    num_parameters=sum(array.size for array in arrays.values()),
                    runtime=at.runtime,
                    workers=at.workers,
                    where=at.where,
                    data=dict(loop.info.data),
                )
            )
            loop.work()
            arrays = loop.arrays()
            store.save_model(arrays)
    except FedloomError as exc:
        error = exc
        with contextlib.suppress(AssertionError):
            arrays = loop.arrays()
    finally:
        loop.close()
        coordinator.forget_run(store.run_id, resumable=error is not None)
    history = store.rounds()
    summary = _summary(experiment, store, loop, place(), history, arrays, error)
    try:
        store.save_summary(summary)
        emit(RunFinished(run_id=store.run_id, summary=summary))
    except FedloomError as exc:
        if error is None:  # a full disk that has not been reported already: what is not on it is not done
            error = exc
            summary = _summary(experiment, store, loop, place(), history, arrays, error)
    return Outcome(summary=summary, history=history, arrays=arrays, error=error)


@contextlib.contextmanager
def _as_ours(loop: Loop) -> Iterator[None]:
    """Give Ctrl-C and unforeseen errors a place in the catalogue."""
    try:
        yield
    except FedloomError:
        raise
    except KeyboardInterrupt as exc:
        raise Interrupted(f"stopped after round {loop.rounds_done}") from exc
    except Exception as exc:
        raise RunFailed(
            f"round {loop.rounds_done + 1} could not be done: {type(exc).__name__}: {exc}. "
            f"Rounds up to {loop.rounds_done} are saved"
        ) from exc


def _summary(
    experiment: Experiment,
    store: RunStore,
    loop: Loop,
    place: Place,
    history: Sequence[RoundRecord],
    arrays: Arrays,
    error: FedloomError | None,
) -> RunSummary:
    traffic = Traffic()
    for record in history:
        traffic = traffic + record.traffic
    evaluated = [record.evaluation for record in history if record.evaluation]
    metrics = evaluated[-1] if evaluated else (history[-1].metrics if history else {})
    status = "done" if error is None else "interrupted" if isinstance(error, Interrupted) else "failed"
    return RunSummary(
        run_id=store.run_id,
        run_dir=str(store.folder) if store.folder is not None else None,
        name=experiment.name,
        status=status,
        rounds=loop.rounds_done,
        metrics=metrics,
        **traffic.model_dump(),
        seconds=loop.seconds,
        model_sha256=arrays_sha256(arrays) if error is None else None,
        num_parameters=sum(array.size for array in arrays.values()),
        seed=experiment.seed,
        group_size=experiment.group_size,
        runtime=place.runtime,
        workers=place.workers,
        failures=sum(len(record.failures) for record in history),
        error=None if error is None else f"{type(error).__name__}: {error}",
        environment=_environment(),
    )


def _environment() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in ("fedloom", "torch", "numpy", "grpcio", "ray", "flwr", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
