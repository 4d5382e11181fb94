"""Does the jobs that belong to no client: the initial model, and descriptions of the data."""

from __future__ import annotations

import dataclasses

from fedloom.client.turn import Turn
from fedloom.core.data_schema import SHARES, SUMS
from fedloom.core.errors import BadUpdate
from fedloom.core.plugins import build_watch
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import MODEL, UNTRAINED, Record, Update
from fedloom.core.text import shown


def initial(turn: Turn) -> Update:
    """Create the initial model, and describe the data."""
    turn.stage = "init"
    workload, monitor = turn.run.workload, turn.run.experiment.monitor
    if monitor is not None:
        build_watch(monitor).check(workload)
    model, info = _checked(workload.init(turn.rng()), workload.describe())
    described = dataclasses.asdict(turn.run.disclosed(_without_sums(info)))
    return Update(num_examples=0, groups=model.groups, info={"workload": described, "model": model.info})


def described(turn: Turn) -> Update:
    """Describe a site's data, before it is a client."""
    turn.stage = "describe"
    info = dataclasses.asdict(turn.run.disclosed(turn.run.workload.describe()))
    info["data"] = {key: value for key, value in info["data"].items() if key != SHARES}
    if turn.run.shares_local_model:
        info["data"][SHARES] = True
    return Update(num_examples=0, info={"workload": info})


def _without_sums(info: WorkloadInfo) -> WorkloadInfo:
    """Return a description without the sums that only sites need of each other."""
    return dataclasses.replace(info, data={key: value for key, value in info.data.items() if key != SUMS})


def _checked(model: object, info: object) -> tuple[Record, WorkloadInfo]:
    """Return a workload's initial model and description.

    Raises:
        BadUpdate: they are something else.
    """
    if not isinstance(model, Record):
        raise BadUpdate(f"'init' returned {shown(model)}; expected a Record with the group {MODEL!r}")
    if not isinstance(info, WorkloadInfo):
        raise BadUpdate(f"'describe' returned {shown(info)}; expected a WorkloadInfo")
    _check_untrained(model)
    return model, info


def _check_untrained(model: Record) -> None:
    """Refuse names that no array has: a server optimiser would step what is to be averaged."""
    names, arrays = model.info.get(UNTRAINED, ()), model.groups.get(MODEL, {})
    if not isinstance(names, list | tuple) or any(name not in arrays for name in names):
        raise BadUpdate(
            f"info {UNTRAINED!r} of 'init': expected a list of names of arrays in group {MODEL!r}, got {shown(names)}"
        )
