"""Runs that continue with other settings: whether they equal a run that had them from the beginning."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.core.config import Experiment
from fedloom.core.config.sections import BestSettings
from fedloom.core.errors import ConfigError, FedloomError
from fedloom.core.history import RoundRecord
from fedloom.core.kinds import Kind
from fedloom.core.plugins import build_strategy, build_workload
from fedloom.core.registry import PartRef


def check_rounds(experiment: Experiment, done: int, *, as_continuation: bool) -> None:
    """Refuse a number of rounds with which a run would not be the one that had it from the beginning.

    Args:
        experiment: with the new number.
        done: number of rounds done so far.
        as_continuation: take it nevertheless, unless fewer than are done.

    Raises:
        ConfigError: with the reason.
    """
    if experiment.max_rounds is not None and experiment.max_rounds < done:
        raise ConfigError(f"rounds: expected at least {done}, which are done, got {experiment.max_rounds}")
    if as_continuation:
        return
    if why := _rounds_needed_by(experiment):
        raise ConfigError(
            "rounds: this run depends on its number of rounds, so that with another one it would not equal a run that "
            f"had it from the beginning ({why}). Resume anyway with --as-continuation"
        )


def check_best(before: Experiment, now: Experiment, records: Sequence[RoundRecord]) -> None:
    """Refuse another `best` than the run has been compared by; another patience is taken.

    Args:
        before: as the run began.
        now: as it is to continue.
        records: of the rounds done.

    Raises:
        ConfigError: another metric, direction or gain, though rounds were evaluated whose models are gone.
    """
    if _compared(before) == _compared(now) or not any(record.evaluation for record in records):
        return
    raise ConfigError(
        "best: rounds of this run were compared otherwise, or not at all, and their models are gone; only "
        "best.patience may be changed. Start a new run"
    )


def _compared(experiment: Experiment) -> BestSettings | None:
    return None if experiment.best is None else experiment.best.model_copy(update={"patience": None})


def _rounds_needed_by(experiment: Experiment) -> str:
    """Return the part of a run that depends on its number of rounds, in words; empty if none does."""
    if setting := experiment.workload.rounds_needed_by():
        return f"{setting} needs the number of rounds"
    open_end = experiment.override(["rounds='open'"])
    workload = PartRef(Kind.WORKLOAD, open_end.workload.name, "workload")
    try:
        build_strategy(open_end.strategy, open_end).close()
        if workload.origin != "bundled":  # fedloom's own say it in their settings, without their data
            build_workload(open_end.workload, open_end)
    except ConfigError as exc:
        return str(exc)
    except FedloomError:  # its data or libraries are elsewhere
        return ""
    return ""
