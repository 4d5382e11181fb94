"""Run an experiment from Python: `load`, `run`, `resume`. The command line does nothing else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast, overload

from fedloom.core import contributed, definitions
from fedloom.core.config import INCIDENTAL, Experiment
from fedloom.core.continuation import check_best, check_rounds
from fedloom.core.erased import require_not_erased
from fedloom.core.errors import (
    ClientFailed,
    ConfigError,
    FedloomError,
    PluginInvalid,
    UnknownName,
    UsageError,
)
from fedloom.core.plugins import build_strategy, check_parts
from fedloom.core.protocols import Sink
from fedloom.core.provenance import provenance
from fedloom.core.python_objects import held
from fedloom.core.records import Record
from fedloom.core.run_files import EXPERIMENT
from fedloom.core.saved_state import SavedState
from fedloom.core.state import load_state
from fedloom.core.text import did_you_mean
from fedloom.local_session import run_on_own_agents
from fedloom.python_run import (
    Given,
    RunArguments,
    at_users_line,
    check_names,
    check_objects,
    make_run,
    objects_of_arguments,
)
from fedloom.rehearsal import Checked, check, experiment_of, explained, names_users_code
from fedloom.result import History, RunResult
from fedloom.server.rounds.session import Outcome
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.server.store.run_store import RunStore, new_run_id

if TYPE_CHECKING:
    from fedloom.workloads.torch.parts import Parts
    from fedloom.workloads.torch.types import Data, Model

RUNS = Path("runs")
"""Default folder of runs."""


class RunOptions(TypedDict, total=False):
    """Arguments of `run` besides an experiment."""

    out: str | Path | None
    """The run's folder; `runs/<id>` by default. It must not contain a run."""
    sinks: Sequence[Sink]
    """Take every event, such as `reporting.console.ConsoleSink()`; none by default."""
    keep: bool
    """Write the run's folder, which is the default; False leaves nothing on disk."""
    start: Record
    """What the run begins with in place of the workload's initial model: its group `model`."""
    source: Path | None
    """File or folder the experiment was read from: the state of the Git repository around it is recorded. By default
    the first code that the settings refer to, or else the working directory."""


class ResumeArguments(Given, total=False):
    """Arguments of `resume` besides the folder."""

    sinks: Sequence[Sink]
    """Take every event."""
    overrides: Sequence[str]
    """Settings of `RESUMABLE`; anything else would make it another experiment. Those of `runtime` are for this
    session, the others are written down. With more `rounds` the run equals, bit for bit, one that had them from the
    beginning."""
    as_continuation: bool
    """Take another number of rounds though the run's state, or its clients' training, depends on it; and take another
    model or data than the run began with."""
    model: Model
    """The model, for a run that began with one."""
    data: Data
    """The data, for a run that began with a model and data."""


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


def load(target: str | Path, overrides: Sequence[str] = (), *, data_elsewhere: bool = False) -> Experiment:
    """Load an experiment from a preset, a TOML file or a plug-in's source, with settings changed.

    Args:
        target: the name or path; a folder or file that a plug-in reads is a Flower app's, say. A preset's name comes
            before a folder of that name, which is written `./NAME`.
        overrides: `KEY=VALUE` settings.
        data_elsewhere: leave relative paths of data as they are, because other machines read them.

    Raises:
        UnknownName: it is none of these.
        ConfigError: a setting is wrong.
    """
    path = Path(target)
    if path.is_dir() and not (isinstance(target, str) and target in presets()):
        return _load_by_plugin(path, overrides)
    if path.is_file() and (path.suffix != ".toml" or path.name == "pyproject.toml"):
        return _load_by_plugin(path, overrides)
    if path.is_file() or path.suffix == ".toml":
        return Experiment.load(path, overrides, data_elsewhere=data_elsewhere)
    if str(target) in presets():
        return Experiment.load(preset_path(str(target)), overrides)
    raise UnknownName(
        f"{str(target)!r} is not a preset, a TOML file or a directory; {did_you_mean(str(target), presets())}"
        f"presets: {', '.join(presets())}"
    )


def _load_by_plugin(path: Path, overrides: Sequence[str]) -> Experiment:
    """Return the experiment that a plug-in's loader makes of a folder or file."""
    loaders = contributed.loaders()
    for loader in loaders:
        if loader.call("describes", path):
            experiment = loader.call("load", path, overrides)
            if not isinstance(experiment, Experiment):
                raise PluginInvalid(f"{loader.path}: load returned {experiment!r}, expected an Experiment")
            return experiment
    known = "".join(f"\n  {loader.plugin}: {loader.summary}" for loader in loaders)
    raise UnknownName(
        f"no plug-in makes an experiment of {str(path)!r}; expected a preset's name, a TOML file, or the folder of one "
        f"of these: {known or 'none is installed'}"
    )


def check_file(target: str | Path, overrides: Sequence[str] = ()) -> Checked:
    """Check plug-ins in use: one round with two clients in this thread, of which nothing is left.

    Args:
        target: a plug-in's Python file or folder, which is used with stand-ins for all else; or what `load` takes.
        overrides: `KEY=VALUE` settings.

    Raises:
        PluginInvalid: a plug-in does not do what its interface says; the message begins with the user's file and line.
        UsageError: a setting, a package or data is wrong or missing.
    """
    path = Path(target)
    is_plugin = path.suffix == ".py" or (path / "__init__.py").is_file()
    return check(experiment_of(path).override(overrides) if is_plugin else load(target, overrides))


@overload
def run(experiment: Experiment, **options: Unpack[RunOptions]) -> RunResult: ...


@overload
def run(**arguments: Unpack[RunArguments]) -> RunResult: ...


def run(experiment: Experiment | None = None, **arguments: object) -> RunResult:
    """Run an experiment, or a PyTorch model on data, to its end.

        fedloom.run(experiment, out="runs/first")
        fedloom.run(model=Net, data=(x, y), clients=10, rounds=20, strategy="fedprox")

    Args:
        experiment: what to run, in the runtime of `experiment.runtime`.
        arguments: with an experiment those of `RunOptions`; without one `model`, `data`, and those of
            `python_run.RunArguments`. `model` is a module, whose weights are then the initial ones, or a class or
            function that makes one. `data` is `(x, y)` of arrays or tensors, a PyTorch data set of such items, a pandas
            frame or a data set of Hugging Face (see `label`); or a pair `(train, test)` of these; or a list, which
            has one for each client; or a function of a client's number that returns one.

    Raises:
        UsageError: the input is wrong; nothing was started.
        RunFailed: it started and failed.
        Interrupted: it was stopped; continue it with `resume`.
    """
    if experiment is not None:
        check_names(arguments, RunOptions, "fedloom.run(experiment)")
        return _run(experiment, cast(RunOptions, arguments))
    given = cast(RunArguments, {name: value for name, value in arguments.items() if value is not None})
    try:
        check_names(arguments, RunArguments, "fedloom.run")
        made = make_run(given)
    except UsageError as exc:
        raise at_users_line(exc) from exc
    options = cast(RunOptions, {name: value for name, value in arguments.items() if name in ("out", "sinks", "keep")})
    options["source"] = _program()
    with held(made.key, made.parts):
        if "sinks" in options:
            return replace(_run(made.experiment, options), objects=made.parts)
        with contextlib.closing(_shown()) as sink:
            return replace(_run(made.experiment, {**options, "sinks": [sink]}), objects=made.parts)


def _program() -> Path | None:
    """Return the file of the running program; None in a REPL or notebook."""
    file = vars(sys.modules["__main__"]).get("__file__")
    return Path(file) if isinstance(file, str) and Path(file).is_file() else None


def _shown() -> Sink:
    """Return a sink that shows a run in the terminal or notebook."""
    from fedloom.reporting.console import ConsoleSink

    return ConsoleSink()


def _run(experiment: Experiment, options: RunOptions) -> RunResult:
    """Run an experiment to its end."""
    _refuse_sites(experiment)
    experiment = experiment.with_data_here()
    check_parts(experiment)
    run_id, out = new_run_id(experiment.name), options.get("out")
    store: RunStore
    if options.get("keep", True):
        store = on_disk = DiskRunStore.create(Path(out) if out is not None else RUNS / run_id, run_id)
        store.begin(experiment)
        on_disk.record_provenance(provenance(experiment, options.get("source")))
    else:
        store = MemoryRunStore(run_id)
        store.begin(experiment)
    if "start" in options:
        store.save_start(options["start"])
    with store.claimed():
        return _session(experiment, store, options.get("sinks", ()), fresh=True)


def _refuse_sites(experiment: Experiment) -> None:
    """Refuse to simulate sites, which are other machines."""
    if not experiment.of_sites:
        return
    own = ", with all data below its own $DATA" if experiment.reads_data_of_nodes() else ""
    raise ConfigError(
        f"clients: got {experiment.clients!r}: each enrolled node is one client{own}, so the run needs a server. Start "
        "one with `fedloom serve`, have the nodes join, and `fedloom submit` the experiment. To simulate it, add "
        "`--set clients=N`: N virtual clients, among which workload.partition splits the data of this machine"
    )


RESUMABLE = ("rounds", "best", *INCIDENTAL)
"""Settings and sections that a resumed run may change; those of `runtime` hold for the session alone. Of `best` only
`patience` may change once a round was evaluated."""


def resume(run_dir: str | Path, **arguments: Unpack[ResumeArguments]) -> RunResult:
    """Resume a run from its last checkpoint, or from its beginning if there is none.

    Args:
        run_dir: the run's folder.
        arguments: `sinks`, `overrides`, `as_continuation`; and for a run of a model and data these, with what was given
            to train and to read them. They must be those that the run began with: their digests are compared.

    Raises:
        NotFound: the folder is not a run's.
        RunExists: another process uses the folder.
        ConfigError: an override is of another section, the run depends on its number of rounds, or model or data are
            missing or not those of the run.
        CheckpointCorrupt: none of its checkpoints can be read.
    """
    check_names(arguments, ResumeArguments, "fedloom.resume")
    overrides, sinks = arguments.get("overrides", ()), arguments.get("sinks", ())
    as_continuation = arguments.get("as_continuation", False)
    store = DiskRunStore.open(Path(run_dir))
    require_not_erased(Path(run_dir), str(run_dir))
    with store.claimed(), contextlib.ExitStack() as stack:
        before = store.experiment()
        _refuse_sites(before)
        for override in overrides:
            _check_resumable(override, Path(run_dir))
        changed = before.override([each for each in overrides if not each.strip().startswith("runtime.")])
        if changed.rounds != before.rounds:
            check_rounds(changed, len(store.rounds()), as_continuation=as_continuation)
        check_best(before, changed, store.rounds())
        parts = _resumed_objects(store, before, arguments)
        if parts is not None:
            stack.enter_context(held(before.workload.objects_key(), parts))
        if changed != before:
            store.change_experiment(changed)
        result = _session(before.override(overrides), store, sinks, fresh=False)
        return result if parts is None else replace(result, objects=parts)


def _resumed_objects(store: DiskRunStore, experiment: Experiment, arguments: ResumeArguments) -> Parts | None:
    """Return the Python objects a run resumes with; None if it has none.

    Raises:
        ConfigError: they are missing, or not those the run began with.
    """
    needed = bool(experiment.workload.objects_key())
    if "model" not in arguments or "data" not in arguments:
        if needed or "model" in arguments or "data" in arguments:
            raise ConfigError(
                "model, data: this run began with a Python program's model and data. Resume it there: "
                "fedloom.resume(folder, model=…, data=…)"
            )
        return None
    try:
        parts, digests = objects_of_arguments(arguments["model"], arguments["data"], arguments)
        if not (needed and arguments.get("as_continuation", False)):
            check_objects(experiment, digests, weights=store.latest_checkpoint() is None)
    except UsageError as exc:
        raise at_users_line(exc) from exc
    return parts


def _check_resumable(override: str, run_dir: Path) -> None:
    key = override.partition("=")[0].strip()
    if key.partition(".")[0] not in RESUMABLE:
        raise ConfigError(
            f"{key}: a run resumes with its original settings, expected only settings of "
            f"{', '.join(RESUMABLE)}, such as runtime.workers=4. To change another one start a new run: "
            f"fedloom run {run_dir / EXPERIMENT} --set {override!r}"
        )


def saved_state(run_dir: str | Path) -> SavedState:
    """Read the strategy's state that a run's model so far is of, from its newest checkpoint; the run may be running.

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
        round=checkpoint.final_round,
        experiment=experiment,
        strategy=strategy,
        state=load_state(strategy.State, checkpoint.final_strategy, checkpoint.pinned),
        workload=store.workload(),
    )


def _session(experiment: Experiment, store: RunStore, sinks: Sequence[Sink], *, fresh: bool) -> RunResult:
    """Run one session; a fresh run that never begins leaves no folder behind."""
    outcome: Outcome | None = None
    try:
        outcome = _explained(run_on_own_agents(experiment, store, sinks), experiment)
        return _finish(outcome, store, experiment)
    finally:
        begun = outcome is not None and not (isinstance(outcome.error, UsageError) and not outcome.history)
        if fresh and not begun:
            store.discard()


def _explained(outcome: Outcome, experiment: Experiment) -> Outcome:
    """Return an outcome whose error begins with the user's file and line, if a plug-in of the user's is the cause.

    Workers report failures as text. Where a plug-in may be at fault in the first round, that is repeated here.
    """
    if outcome.error is None or outcome.history or not names_users_code(experiment):
        return outcome
    error = explained(outcome.error, experiment)
    if isinstance(error, ClientFailed) and error.__cause__ is None:
        try:
            check(experiment)
        except PluginInvalid as exc:
            error = exc
        except FedloomError:  # not what the workers met
            return outcome
    return outcome if error is outcome.error else replace(outcome, error=error)


def _finish(outcome: Outcome, store: RunStore, experiment: Experiment) -> RunResult:
    if store.folder is not None:
        from fedloom.reporting import write_report

        with contextlib.suppress(OSError, FedloomError):  # a full disk: the run's own error says so
            write_report(store.folder, with_code=True)
    if outcome.error is not None:
        outcome.error.add_note(f"run folder: {store.folder}")
        raise outcome.error
    return RunResult(
        summary=outcome.summary,
        history=History(outcome.history),
        arrays=outcome.arrays,
        run_dir=store.folder,
        experiment=experiment,
    )


def _presets() -> dict[str, Path]:
    return definitions.found("presets")


__all__ = ["FedloomError", "RunResult", "check_file", "load", "preset_path", "presets", "resume", "run", "saved_state"]
