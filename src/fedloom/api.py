"""Run an experiment from Python: `load`, `run`, `resume`. The command line does nothing else."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.core import contributed, definitions
from fedloom.core.config import INCIDENTAL, Experiment
from fedloom.core.continuation import check_rounds
from fedloom.core.errors import ConfigError, FedloomError, PluginInvalid, UnknownName, UsageError
from fedloom.core.history import RoundRecord, RunSummary
from fedloom.core.local_token import new_token
from fedloom.core.plugins import build_strategy, check_parts
from fedloom.core.protocols import Sink
from fedloom.core.records import Arrays
from fedloom.core.run_files import EXPERIMENT
from fedloom.core.saved_state import SavedState
from fedloom.core.state import load_state
from fedloom.core.text import did_you_mean
from fedloom.server.app import Server
from fedloom.server.rounds.run_services import FleetAccess
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.server.store.run_store import RunStore, new_run_id
from fedloom.simulation.client_states import forget_states
from fedloom.simulation.runtimes import make_runtime

RUNS = Path("runs")
"""Default folder of runs."""
PATIENCE_S = 60.0
"""Seconds without any agent after which a simulated run fails."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run."""

    summary: RunSummary
    history: Sequence[RoundRecord]
    """One record per round, first to last."""
    arrays: Arrays
    """The final global model, by array name."""
    run_dir: Path | None
    """The run's folder; None if nothing was written."""

    @property
    def metrics(self) -> dict[str, float]:
        """Return the last evaluation."""
        return self.summary.metrics


def presets() -> tuple[str, ...]:
    """Return the names of the experiments that come with fedloom and with installed methods."""
    return tuple(_presets())


def preset_path(name: str) -> Path:
    """Find the TOML file of a preset.

    Raises:
        UnknownName: there is no such preset; the message names the nearest.
        ConfigError: two files have one name.
    """
    files = _presets()
    if name not in files:
        raise UnknownName(f"{name!r} is not a preset; {did_you_mean(name, files)}presets: {', '.join(files)}")
    return files[name]


def load(target: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Make an experiment of a preset's name, a TOML file, or a folder that a plug-in reads, with settings changed.

    Args:
        target: the name or path; a folder such as a Flower app's. A preset's name comes before a folder of that name,
            which is written `./NAME`.
        overrides: `KEY=VALUE` settings.

    Raises:
        UnknownName: it is none of these.
        ConfigError: a setting is wrong.
    """
    path = Path(target)
    if path.is_dir() and not (isinstance(target, str) and target in presets()):
        return _load_folder(path, overrides)
    if path.is_file() or path.suffix == ".toml":
        return Experiment.load(path, overrides)
    if str(target) in presets():
        return Experiment.load(preset_path(str(target)), overrides)
    raise UnknownName(
        f"{str(target)!r} is not a preset, a TOML file or a directory; {did_you_mean(str(target), presets())}"
        f"presets: {', '.join(presets())}"
    )


def _load_folder(folder: Path, overrides: Sequence[str]) -> Experiment:
    """Return the experiment that a plug-in's loader makes of a folder."""
    loaders = contributed.loaders()
    for loader in loaders:
        if loader.call("describes", folder):
            experiment = loader.call("load", folder, overrides)
            if not isinstance(experiment, Experiment):
                raise PluginInvalid(f"{loader.path}: load returned {experiment!r}, expected an Experiment")
            return experiment
    known = "".join(f"\n  {loader.plugin}: {loader.summary}" for loader in loaders)
    raise UnknownName(
        f"no plug-in makes an experiment of the folder {str(folder)!r}; expected a preset's name, a TOML file, or the "
        f"folder of one of these: {known or 'none is installed'}"
    )


def run(
    experiment: Experiment, *, out: str | Path | None = None, sinks: Sequence[Sink] = (), keep: bool = True
) -> RunResult:
    """Run an experiment to its end, in the runtime of `experiment.runtime`.

    Args:
        experiment: what to run.
        out: the run's folder; `runs/<id>` by default. It must not contain a run.
        sinks: take every event, such as `reporting.console.ConsoleSink()`.
        keep: write the run's folder; False leaves nothing on disk.

    Raises:
        UsageError: the input is wrong; nothing was started.
        RunFailed: it started and failed.
        Interrupted: it was stopped; continue it with `resume`.
    """
    check_parts(experiment)
    run_id = new_run_id(experiment.name)
    store: RunStore
    store = (
        DiskRunStore.create(Path(out) if out is not None else RUNS / run_id, run_id) if keep else MemoryRunStore(run_id)
    )
    store.begin(experiment)
    with store.claimed():
        return _session(experiment, store, sinks, fresh=True)


RESUMABLE = ("rounds", *INCIDENTAL)
"""Settings and sections that a resumed run may change; those of `runtime` hold for the session alone."""


def resume(
    run_dir: str | Path, *, sinks: Sequence[Sink] = (), overrides: Sequence[str] = (), as_continuation: bool = False
) -> RunResult:
    """Resume a run from its last checkpoint, or from its beginning if there is none.

    Args:
        run_dir: the run's folder.
        sinks: take every event.
        overrides: settings of `RESUMABLE`; anything else would make it another experiment. Those of `runtime` are for
            this session, the others are written down. With more `rounds` the run equals, bit for bit, one that had them
            from the beginning.
        as_continuation: take another number of rounds though the run's state, or its clients' training, depends on it.

    Raises:
        NotFound: the folder is not a run's.
        RunExists: another process is at work in the folder.
        ConfigError: an override is of another section, or the run depends on its number of rounds.
        CheckpointCorrupt: none of its checkpoints can be read.
    """
    store = DiskRunStore.open(Path(run_dir))
    with store.claimed():
        before = store.experiment()
        for override in overrides:
            _check_resumable(override, Path(run_dir))
        kept = before.override([each for each in overrides if not each.strip().startswith("runtime.")])
        if kept.rounds != before.rounds:
            check_rounds(kept, len(store.rounds()), as_continuation=as_continuation)
        if kept != before:
            store.change_experiment(kept)
        return _session(before.override(overrides), store, sinks, fresh=False)


def _check_resumable(override: str, run_dir: Path) -> None:
    key = override.partition("=")[0].strip()
    if key.partition(".")[0] not in RESUMABLE:
        raise ConfigError(
            f"{key}: a run resumes with its original settings, expected only settings of "
            f"{', '.join(RESUMABLE)}, such as runtime.workers=4. To change another one start a new run: "
            f"fedloom run {run_dir / EXPERIMENT} --set {override!r}"
        )


def saved_state(run_dir: str | Path) -> SavedState:
    """Read the strategy's state of a run's newest checkpoint; the run may be running.

    Raises:
        UsageError: it is no run's folder, or the run has no checkpoint yet.
        UnknownName: its strategy is not installed here.
        CheckpointCorrupt: none of its checkpoints can be read.
    """
    from fedloom.reporting.run_folder import require_run_folder

    folder = require_run_folder(run_dir)
    store = DiskRunStore.open(folder)
    experiment, checkpoint = store.experiment(), store.latest_checkpoint()
    if checkpoint is None:
        raise UsageError(f"{folder}: the run has no checkpoint yet")
    strategy = build_strategy(experiment.strategy, experiment)
    return SavedState(
        folder=folder,
        round=checkpoint.round,
        experiment=experiment,
        strategy=strategy,
        state=load_state(strategy.State, checkpoint.strategy, checkpoint.pinned),
        workload=store.workload(),
    )


def _session(experiment: Experiment, store: RunStore, sinks: Sequence[Sink], *, fresh: bool) -> RunResult:
    """Run one session; a fresh run that never begins leaves no folder behind."""
    outcome: Outcome | None = None
    try:
        outcome = _run_agents_and_session(experiment, store, sinks)
        return _finish(outcome, store)
    finally:
        begun = outcome is not None and not (isinstance(outcome.error, UsageError) and not outcome.history)
        if fresh and not begun:
            store.discard()


def _run_agents_and_session(experiment: Experiment, store: RunStore, sinks: Sequence[Sink]) -> Outcome:
    stop = threading.Event()
    with _stopping_on_signals(stop), Server(sinks) as server, contextlib.ExitStack() as stack:
        runtime = make_runtime(experiment)
        stack.callback(runtime.stop)
        host, token = runtime.host(), new_token()
        address = f"{host}:{server.listen(host, token=token)}" if host else ""
        runtime.start(server.coordinator, address, token)
        fleet = FleetAccess(
            coordinator=server.coordinator,
            place=runtime.place,
            pump=None if host else runtime.pump,
            patience_s=PATIENCE_S,
            clock=server.clock,
        )
        outcome = run_session(experiment, store, fleet, sinks, stop=stop)
        server.coordinator.close("the run is over")
    if outcome.error is None or store.folder is None:  # else the run may be resumed
        forget_states(store.run_id)
    return outcome


def _finish(outcome: Outcome, store: RunStore) -> RunResult:
    if store.folder is not None:
        from fedloom.reporting import write_report

        with contextlib.suppress(OSError, FedloomError):  # a full disk: the run's own error says so
            write_report(store.folder)
    if outcome.error is not None:
        outcome.error.add_note(f"run folder: {store.folder}")
        raise outcome.error
    return RunResult(summary=outcome.summary, history=outcome.history, arrays=outcome.arrays, run_dir=store.folder)


@contextlib.contextmanager
def _stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Stop the run in order at the first Ctrl-C or SIGTERM, abort it at the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _presets() -> dict[str, Path]:
    return definitions.found("presets")


__all__ = ["FedloomError", "RunResult", "load", "preset_path", "presets", "resume", "run", "saved_state"]
