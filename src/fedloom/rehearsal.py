"""Checks plug-ins in use: one round with two clients in this thread, and errors in the user's terms."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.core.blame import Blame, is_users_code
from fedloom.core.config import Experiment
from fedloom.core.errors import (
    BadUpdate,
    ClientFailed,
    ConfigError,
    FedloomError,
    PluginInvalid,
    RunFailed,
    UnknownName,
    UsageError,
)
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.plugin_faults import plugin_fault, raised_in
from fedloom.core.plugins import build_value, build_workload, check_parts, parts_named
from fedloom.core.registry import PartRef, forget_changed
from fedloom.local_session import run_on_own_agents
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.run_store import new_run_id

_CLIENTS = 2
_STEPS = 4
"""Steps of a client's training, for workloads that have `training.max_steps`."""
_STAND_INS = {"strategy": "fedavg", "workload": "fedloom.testing.linear"}
"""What a plug-in's file is checked with."""
_METHODS: Mapping[str, tuple[Kind, str, str]] = {
    "init": (Kind.WORKLOAD, "workload", "init"),
    "describe": (Kind.WORKLOAD, "workload", "describe"),
    "shard": (Kind.WORKLOAD, "workload", "shard"),
    "train": (Kind.WORKLOAD, "workload", "train"),
    "evaluate": (Kind.WORKLOAD, "workload", "evaluate"),
    "outgoing": (Kind.STRATEGY, "rule", "outgoing"),
    "measure": (Kind.SELECTION, "measure", "__call__"),
    "monitor": (Kind.MONITOR, "watch", "__call__"),
}
"""The part and the method that a stage of a client's work calls."""


@dataclass(frozen=True)
class Checked:
    """A check that found nothing."""

    experiment: Experiment
    """What was run."""
    parts: tuple[str, ...]
    """The user's plug-ins in it, as `strategy './mine.py'`."""


def users_parts(experiment: Experiment) -> list[PartRef]:
    """Return the plug-ins of an experiment whose code is a user's."""
    found = []
    for section, kind in SECTIONS.items():
        settings = vars(experiment).get(section)
        if settings is not None:
            ref = PartRef(kind, settings.name, section)
            if is_users_code(ref):
                found.append(ref)
    return found


def names_users_code(experiment: Experiment) -> bool:
    """Return whether a user's plug-in, or a user's code that settings name, is part of an experiment."""
    return bool(users_parts(experiment)) or any(True for _ in experiment.code_files())


def experiment_of(file: Path) -> Experiment:
    """Return an experiment that uses every plug-in of a Python file or a package's folder, and stand-ins for the rest.

    Raises:
        PluginInvalid: it cannot be imported, or defines no plug-in.
        ConfigError: a setting of it has no default; check an experiment's file instead.
    """
    forget_changed()
    name = str(file.resolve())
    kinds = [kind for kind in Kind if PartRef(kind, name, kind.section).exists()]
    if not kinds:
        wanted = ", ".join(f"build_{kind.section}" for kind in Kind)
        raise PluginInvalid(f"{file}: expected a plug-in, a file that defines one of {wanted}; found none of them")
    chosen = {**_STAND_INS, **{kind.section: name for kind in kinds}}
    try:
        return Experiment.parse({"name": file.stem, "rounds": 1, "clients": 4, **chosen})
    except UsageError as exc:
        if isinstance(exc, PluginInvalid):
            raise
        raise ConfigError(
            f"{file}: {exc}. Check an experiment's file that sets it: fedloom check EXPERIMENT.toml"
        ) from exc


def check(experiment: Experiment) -> Checked:
    """Do one round with two clients in this thread, in a folder that is deleted again.

    Raises:
        PluginInvalid: a plug-in does not do what its interface says; the message begins with the user's file and line.
        UsageError: a setting, a package or data is wrong or missing.
        RunFailed: something else failed.
    """
    check_parts(experiment)
    _rehearse(experiment)
    parts = tuple(f"{ref.kind.section} {ref.name!r}" for ref in users_parts(experiment))
    return Checked(experiment, parts)


def check_submission(experiment: Experiment) -> None:
    """Check the user's plug-ins of an experiment before it is submitted, as far as that can be done here.

    Strategy, selection and monitor are tried with a stand-in for the workload first; what fails then is tried with the
    workload itself. Data or packages that only nodes have are no mistake: a
    workload that reads `$DATA` is not tried.

    Raises:
        PluginInvalid: a plug-in does not do what its interface says.
    """
    users = users_parts(experiment)
    named = any(each.section == Kind.WORKLOAD.section for each in experiment.code_files())
    if not users and named and not experiment.reads_data_of_nodes():
        _build(experiment)
    if not users:
        return
    if all(ref.kind is not Kind.WORKLOAD for ref in users):
        stand_in = {**experiment.to_dict(), "workload": _STAND_INS["workload"]}
        with contextlib.suppress(FedloomError):
            _rehearse(Experiment.parse(stand_in))
            return
    if experiment.reads_data_of_nodes():
        return  # below $DATA, which only nodes have
    try:
        _rehearse(experiment)
    except PluginInvalid:
        raise
    except FedloomError:  # what this machine lacks; a node says so if it does, too
        return


def _build(experiment: Experiment) -> None:
    """Build the workload, whose settings name a user's code.

    Raises:
        PluginInvalid: the code is not what it should be; what this machine lacks is no mistake.
    """
    try:
        build_workload(experiment.workload, experiment)
    except PluginInvalid:
        raise
    except FedloomError:
        return
    except Exception as exc:
        if raised_in(exc):
            raise plugin_fault(f"workload {experiment.workload.name!r}", exc) from exc
        raise


def explained(error: FedloomError, experiment: Experiment) -> FedloomError:
    """Return an error that begins with the user's file and line, if a user's plug-in is the cause; else the same error.

    Args:
        error: how a run ended before its first round did.
        experiment: what was run.
    """
    cause = error.__cause__
    if isinstance(error, PluginInvalid) or not isinstance(error, ClientFailed | RunFailed) or cause is None:
        return error
    if not isinstance(cause, Exception):  # sys.exit() in a client's code is that client's failure
        return error
    if not isinstance(cause, FedloomError):
        return plugin_fault(_stage_words(error), cause) if raised_in(cause) else error
    if not isinstance(cause, BadUpdate):
        return error
    blame = _blamed(error, experiment)
    return error if blame is None else PluginInvalid(f"{blame[0].place(blame[1])}: {blame[1]}: {cause}")


def _blamed(error: FedloomError, experiment: Experiment) -> tuple[Blame, str] | None:
    """Return the user's part whose result was refused, and the method; None if it is no user's."""
    for kind, part, method in _candidates(_stage_of(error), str(error.__cause__)):
        settings = vars(experiment).get(kind.section)
        ref = None if settings is None else PartRef(kind, settings.name, part)
        if ref is None or not ref.exists() or not is_users_code(ref):
            continue
        with contextlib.suppress(FedloomError):
            return Blame(_made(ref, experiment), ref), method
    return None


def _candidates(stage: str, message: str) -> Sequence[tuple[Kind, str, str]]:
    """Return the parts that may be the cause, the likeliest first: an update has passed the client's rule, too.

    Args:
        stage: of the client's work.
        message: the message, which may quote the job's kind.
    """
    named = next(
        (kind for kind in ("init", "describe", "held_out", "evaluate", "monitor") if f"'{kind}'" in message), ""
    )
    found = _METHODS.get({"held_out": "evaluate"}.get(named, named) or stage)
    if stage == "outgoing" and not named:
        return _METHODS["train"], _METHODS["outgoing"]
    return () if found is None else (found,)


def _made(ref: PartRef, experiment: Experiment) -> object:
    if ref.part == "workload":
        return build_workload(experiment.workload, experiment)
    build = vars(ref.load())[f"build_{ref.part}"]
    settings = vars(experiment)[ref.kind.section]
    return build(settings) if ref.part == "watch" else build()


def _stage_of(error: FedloomError) -> str:
    """Return the stage of a client's work at which it failed, from the error's own words."""
    _, found, rest = str(error).partition(", stage ")
    return rest.partition(" on ")[0].partition(":")[0].strip() if found else ""


def _stage_words(error: FedloomError) -> str:
    """Return what failed, as `train of client 1, round 1`."""
    whose = str(error).partition(", stage ")[0]
    return (
        f"{_stage_of(error)} of {whose if whose.startswith('client ') else 'a client'}"
        if _stage_of(error)
        else "a plug-in"
    )


def _rehearse(experiment: Experiment) -> None:
    """Run one small round in this thread.

    Raises:
        FedloomError: what ended it, in the user's terms.
    """
    small = _small(experiment)
    with tempfile.TemporaryDirectory(prefix="fedloom-check-") as folder:
        run_id = new_run_id(small.name)
        store = DiskRunStore.create(Path(folder, "run"), run_id)
        store.begin(small)
        with store.claimed(), _explaining(small):
            outcome = run_on_own_agents(small, store, ())
            if outcome.error is not None:
                raise outcome.error
        _check_report(small, Path(folder, "run"))


@contextlib.contextmanager
def _explaining(experiment: Experiment) -> Iterator[None]:
    try:
        yield
    except FedloomError as exc:
        better = explained(exc, experiment)
        if better is exc:
            raise
        raise better from exc


def _check_report(experiment: Experiment, folder: Path) -> None:
    """Have plug-ins make their parts of the run's report."""
    from fedloom.reporting.plugins import Contribution
    from fedloom.reporting.run_folder import RunFolder

    run = RunFolder.read(folder)
    for ref in parts_named(experiment.to_dict(), "report"):
        build_value(ref, Contribution, run)


def _small(experiment: Experiment) -> Experiment:
    """Return an experiment of one round with two clients, each with a few steps."""
    values = experiment.to_dict()
    clients = 2 * _CLIENTS if experiment.of_sites else experiment.clients
    values |= {"rounds": 1, "clients": clients, "runtime": {"name": "inline"}, "fleet": {}}
    values["cohort"] = _CLIENTS if experiment.of_sites else min(_CLIENTS, experiment.cohort_size)
    values["round"] = {**values.get("round", {}), "quorum_fraction": 1.0, "oversample_fraction": 0.0}
    values.pop("checkpoint", None)
    try:
        return Experiment.parse(_with_few_steps(values))
    except (ConfigError, UnknownName):  # settings that do not go together with so few rounds or steps
        return Experiment.parse({**values, "rounds": experiment.rounds}).override(["rounds=3"])


def _with_few_steps(values: dict[str, object]) -> dict[str, object]:
    workload = values["workload"]
    training = workload.get("training") if isinstance(workload, dict) else None
    if isinstance(workload, dict) and isinstance(training, dict) and "epochs" in training and not training.get("steps"):
        return {**values, "workload": {**workload, "training": {**training, "max_steps": _STEPS}}}
    return values
