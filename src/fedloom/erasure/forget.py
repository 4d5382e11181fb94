"""Let a client withdraw from a run: `fedloom.forget`."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Required, TypeAlias, TypedDict, Unpack, get_args

import numpy as np

from fedloom import api
from fedloom.core import run_files
from fedloom.core.config import Experiment
from fedloom.core.distances import distance
from fedloom.core.erased import mark, require_not_erased
from fedloom.core.errors import FedloomError, UnsupportedFeature, UsageError
from fedloom.core.plugins import build_workload
from fedloom.core.protocols import Sink
from fedloom.core.records import INITIAL, MODEL, Array, Arrays, Info, Record, arrays_sha256, metric_values
from fedloom.core.text import did_you_mean
from fedloom.erasure.history import History
from fedloom.erasure.record import Cost, Erasure, ModelFacts
from fedloom.python_run import check_names
from fedloom.server.store.disk_run_store import DiskRunStore

Method: TypeAlias = Literal["drop", "noisy_labels", "gradient_ascent", "negate_update", "calibrate"]
METHODS: tuple[str, ...] = get_args(Method)
PURGED = (
    run_files.MODEL.partition("/")[0],
    run_files.CHECKPOINTS,
    run_files.CLIENTS,
    run_files.UPDATES,
    run_files.ANSWERS,
    run_files.START,
)
"""Files and folders of a run that hold models, or what clients have changed in them."""
SHARE = 0.1
"""Rounds of forgetting and of recovery, as a fraction of the original's."""
EVERY = 4
"""`calibrate` repeats every n-th round, so that it costs a quarter of training anew."""


class ForgetArguments(TypedDict, total=False):
    """Arguments of `forget` besides the folder."""

    client: Required[int]
    """Who withdraws."""
    out: Required[str | Path]
    """The new run's folder."""
    method: str
    """One of `METHODS`; `drop` by default."""
    rounds: int | None
    """Rounds without the client; None takes a tenth of the original's, at least one."""
    purge: bool
    """Delete the original's models, checkpoints and updates."""
    retrain: bool
    """Also train from the beginning without the client, in `<out>-retrained`, and measure distances to that model."""
    sinks: Sequence[Sink]
    """Take the events of all runs that this makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wish:
    """Who withdraws, and how."""

    client: int
    out: Path
    method: str
    rounds: int | None
    purge: bool
    retrain: bool
    sinks: Sequence[Sink]


def forget(run_dir: str | Path, **arguments: Unpack[ForgetArguments]) -> Erasure:
    """Continue a finished run without one of its clients, whose contribution is undone by a method.

    The new run's folder has `erasure.json`. The original is marked and cannot be resumed; it is marked only when
    the new run is complete, so that an error loses nothing.

    Args:
        run_dir: the original run's folder.
        arguments: `client` and `out`; `method`, `rounds`, `purge`, `retrain`, `sinks`.

    Raises:
        UsageError: the client took no part, the method needs what the run has not saved, or the run cannot begin with
            a model.
        RunFailed: a run that this made failed; the original is as it was.
    """
    wish = _wish(arguments)
    if wish.method not in METHODS:
        raise UsageError(f"method {wish.method!r}: {did_you_mean(wish.method, METHODS)}one of {', '.join(METHODS)}")
    store = DiskRunStore.open(Path(run_dir))
    with store.claimed():
        original = _Original.read(store, wish)
        target = wish.out
        if target.exists():
            raise UsageError(f"{target} exists already; choose another folder with --out")
        retrained = _retrained(original, wish)  # first: if it fails there is no new run yet
        erased, trainings, rounds = _forgotten(original, wish)
        recovery = original.experiment.override(
            [f"excluded={[*original.experiment.excluded, wish.client]}", f"rounds={original.rounds_for(wish)}"]
        )
        result = api.run(recovery, out=target, sinks=wish.sinks, start=Record({MODEL: erased}))
        cost = Cost(
            forgetting=trainings,
            recovering=sum(record.local_trainings for record in result.history),
            original=original.trainings - len(original.took_part),
        )
        record = Erasure(
            client=wish.client,
            method=wish.method,
            original=str(Path(run_dir)),
            original_run_id=store.run_id,
            round=original.round,
            took_part=original.took_part,
            forgetting_rounds=rounds,
            recovering_rounds=result.summary.rounds,
            cost=cost,
            before=original.facts(original.arrays, original.evaluation, retrained),
            after=original.facts(result.arrays, result.summary.metrics, retrained),
            retrained=None if retrained is None else original.facts(*retrained, None),
            jobs_of_client_after=_jobs_of(wish.client, target),
            purged=[name for name in PURGED if wish.purge and (original.folder / name).exists()],
        )
        record.write(target)
        mark(original.folder, f"client {wish.client}", str(target))
        for name in record.purged:
            _delete(original.folder / name)
        if wish.purge:
            _delete(target / run_files.START)  # of use until there is a checkpoint; the original's model, or nearly
        return record


def _wish(arguments: ForgetArguments) -> _Wish:
    check_names(arguments, ForgetArguments, "fedloom.forget")
    return _Wish(
        client=arguments["client"],
        out=Path(arguments["out"]),
        method=arguments.get("method", "drop"),
        rounds=arguments.get("rounds"),
        purge=arguments.get("purge", False),
        retrain=arguments.get("retrain", False),
        sinks=arguments.get("sinks", ()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Original:
    """The run that a client withdraws from."""

    folder: Path
    experiment: Experiment
    client: int
    round: int
    arrays: Arrays
    evaluation: Info
    trainings: int
    took_part: list[int]
    sizes: Sequence[int]
    history: History | None

    @classmethod
    def read(cls, store: DiskRunStore, wish: _Wish) -> _Original:
        """Read a run's folder.

        Raises:
            UsageError: the client cannot withdraw from this run, or not by this method.
        """
        folder = store.folder
        require_not_erased(folder, str(folder))
        experiment = store.experiment()
        _require_possible(folder, experiment)
        records, choices = store.rounds(), store.choices()
        took_part = [each.round for each in choices if wish.client in each.cohort and wish.client not in each.missed]
        if wish.client in experiment.excluded:
            raise UsageError(f"{folder}: client {wish.client} is excluded from this run already")
        if not took_part and store.start() is None:  # a model that a run began with may be anybody's
            raise UsageError(
                f"{folder}: client {wish.client} took no part in any of the run's {len(records)} rounds, so there is "
                "nothing to forget. To keep it out of later runs, set excluded = [...]"
            )
        saved = api.saved_state(folder)
        needs_history = wish.method in ("negate_update", "calibrate")
        if needs_history and store.start() is not None:
            raise UsageError(
                f"{folder}: this run began with an earlier run's model, whose updates it does not have, so "
                f"{wish.method} cannot undo them. Methods that work: drop, noisy_labels, gradient_ascent"
            )
        evaluated = [record.evaluation for record in records if record.evaluation]
        return cls(
            folder=folder,
            experiment=experiment,
            client=wish.client,
            round=saved.round,
            arrays=saved.strategy.arrays(saved.state),
            evaluation=evaluated[-1] if evaluated else {},
            trainings=sum(record.local_trainings for record in records),
            took_part=took_part,
            sizes=() if saved.workload is None else saved.workload.client_sizes,
            history=History(folder, saved.round) if needs_history else None,
        )

    @property
    def tenth(self) -> int:
        """Return a tenth of the run's rounds, at least one."""
        return max(1, math.ceil(SHARE * self.round))

    def rounds_for(self, wish: _Wish) -> int:
        """Return the number of rounds without the client."""
        return wish.rounds or self.tenth

    @property
    def part(self) -> float:
        """Return the client's part of the model, p_k: its examples over all clients', or one client's of all."""
        if self.client < len(self.sizes) and sum(self.sizes) > self.sizes[self.client] > 0:
            return self.sizes[self.client] / sum(self.sizes)
        return 1.0 / max(self.experiment.num_clients, 2)

    def facts(self, arrays: Arrays, evaluation: Info, retrained: tuple[Arrays, Info] | None) -> ModelFacts:
        """Return what is known of a model of the run."""
        return ModelFacts(
            sha256=arrays_sha256(arrays),
            evaluation=dict(evaluation),
            on_client=self._on_client(arrays),
            distance_to_retrained=None if retrained is None else distance(arrays, retrained[0]),
        )

    def _on_client(self, arrays: Arrays) -> dict[str, float]:
        """Return a model's metrics on the client's data; empty where the workload cannot say."""
        with contextlib.suppress(FedloomError):
            workload = build_workload(self.experiment.workload, self.experiment)
            shard = workload.shard(self.client)
            return metric_values(workload.evaluate({MODEL: Record({MODEL: arrays})}, shard))
        return {}


def _require_possible(folder: Path, experiment: Experiment) -> None:
    """Refuse runs whose clients cannot withdraw here."""
    if experiment.of_sites:
        raise UsageError(
            f"{folder}: the clients of this run are sites, whose data are elsewhere. Submit the experiment to their "
            'server again with excluded = ["NAME"]: it is trained anew, without the site'
        )
    if experiment.workload.objects_key():
        raise UsageError(
            f"{folder}: this run began with a Python program's model and data, which are not here. Run it again there "
            "with the client left out of data"
        )


def _forgotten(original: _Original, wish: _Wish) -> tuple[Arrays, int, int]:
    """Return the model with the client's contribution undone, the local trainings that took, and the rounds."""
    if wish.method == "drop":
        return original.arrays, 0, 0
    if wish.method == "negate_update":
        return _negated(original), 0, 0
    settings: dict[str, object] = {"name": "forgetting", "method": wish.method, "client": wish.client}
    rounds, info = original.tenth, dict[str, object]()
    if wish.method == "gradient_ascent":
        settings["part"], rounds, info = original.part, 1, {INITIAL: True}
    if wish.method == "calibrate" and original.history is not None:
        lengths = list(original.history.lengths(EVERY, wish.client))
        rounds = len(lengths)
        info = {INITIAL: True, "norms": {str(number): found for number, found in enumerate(lengths, 1)}}
    experiment = _without_client(original.experiment, wish.client, rounds, settings)
    with tempfile.TemporaryDirectory(prefix="fedloom-forgetting-") as folder:
        result = api.run(
            experiment, out=Path(folder) / "run", sinks=wish.sinks, start=Record({MODEL: original.arrays}, info)
        )
        arrays = {name: np.array(array) for name, array in result.arrays.items()}
    trainings = sum(len(record.client_seconds) for record in result.history)
    return arrays, trainings, rounds


def _without_client(experiment: Experiment, client: int, rounds: int, strategy: Info) -> Experiment:
    """Return the experiment whose rounds undo a client's contribution: the others are sampled, and it is added."""
    values = experiment.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    values |= {"strategy": strategy, "rounds": rounds, "excluded": [*experiment.excluded, client]}
    values["checkpoint"] = {"every": rounds}
    values.pop("monitor", None)
    return Experiment.parse(values)


def _negated(original: _Original) -> Arrays:
    """Return w - p_k Delta_k: the model without the client's last change, as much of it as went into the mean."""
    found = original.history.last_of(original.client) if original.history is not None else None
    update = {} if found is None else found[1].groups[MODEL]
    if update.keys() != original.arrays.keys():
        raise UnsupportedFeature(
            f"negate_update: the stored update of client {original.client} has other arrays than the global model, as "
            f"with strategy {original.experiment.strategy.name!r}. Methods that work: drop, noisy_labels"
        )
    return {name: _minus(array, update[name], original.part) for name, array in original.arrays.items()}


def _minus(array: Array, change: Array, part: float) -> Array:
    if array.dtype.kind in "iub":
        return array
    return np.asarray((array.astype(np.float64) - part * change.astype(np.float64)).astype(array.dtype))


def _retrained(original: _Original, wish: _Wish) -> tuple[Arrays, Info] | None:
    """Train from the beginning without the client, if that is wanted; returns the model and its evaluation."""
    if not wish.retrain:
        return None
    excluded = [*original.experiment.excluded, wish.client]
    experiment = original.experiment.override([f"excluded={excluded}", f"rounds={original.round}"])
    result = api.run(experiment, out=wish.out.with_name(f"{wish.out.name}-retrained"), sinks=wish.sinks)
    return result.arrays, result.summary.metrics


def _jobs_of(client: int, folder: Path) -> int:
    """Count the jobs that a client was given in a run's rounds."""
    choices = run_files.read_choices(folder)
    return sum((client in each.cohort) + sum(line.client == client for line in each.probed) for each in choices)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
