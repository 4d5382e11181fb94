"""One job of one client: which of the workload's methods does it, with which randomness, and where its result goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedloom.client.parked import ParkedUpdates, own
from fedloom.core import run_files
from fedloom.core.config import Experiment
from fedloom.core.errors import BadUpdate, UnsupportedFeature
from fedloom.core.messages import Group, GroupKey, PayloadRef
from fedloom.core.plugins import build_measure, build_rules, build_watch, chained
from fedloom.core.protocols import KeepsClientState, LocalRule, Shard, TrainsGroups, Workload
from fedloom.core.records import MODEL, Info, Job, Record, Update
from fedloom.core.seeds import generator

COLLECT = "collect"
"""Kind of a job that hands over the update a client trained earlier in the round."""


@dataclass
class Stage:
    """What a client is at, for its failure."""

    name: str = "load"


@dataclass(frozen=True, slots=True)
class Done:
    """A finished job."""

    update: Update
    read: bool = True
    """Whether the client read the job's inputs."""
    trained: bool = False
    """Whether the client trained to do the job."""
    retrained: bool = False
    """Whether that was because its parked update was gone."""
    measured: int = 0
    """Floats in `update.info` that a measure put there."""
    shared_s: float = 0.0
    """The client's share of work done for its whole group at once; seconds."""


@dataclass
class _Together:
    """What a group's common program has made, by client."""

    key: GroupKey | None = None
    updates: dict[int, Update] = field(default_factory=dict)
    measured: dict[int, Info] = field(default_factory=dict)
    share_s: float = 0.0


class JobRunner:
    """Does jobs with one workload after another.

    Args:
        fetch: gets the record behind a reference.
        parked: keeps the updates that wait to be collected.
    """

    def __init__(self, fetch: Callable[[PayloadRef], Record], parked: ParkedUpdates) -> None:
        self._fetch, self._parked = fetch, parked
        self._together = _Together()

    def train_together(
        self,
        experiment: Experiment,
        workload: Workload[Shard],
        group: Group,
        inputs: Callable[[], Mapping[str, Record]],
    ) -> None:
        """Train a whole group with the workload's own program for that, where it has one; `do` then finds the updates.

        Any trouble leaves the clients to be trained one by one, which says whose it is.
        """
        program = _group_program(workload, group)
        if program is None or self._together.key == group.key or any(job.kind != "train" for job in group.jobs):
            return
        self._together = _Together(group.key)
        begin = time.perf_counter()
        with contextlib.suppress(Exception):
            rngs = [
                generator(experiment.seed, "train", job.round, group.key.exchange, job.client) for job in group.jobs
            ]
            shards = [workload.shard(job.client) for job in group.jobs]
            updates = program(group.jobs, inputs(), shards, rngs)
            clients = [job.client for job in group.jobs]
            self._together.updates = dict(zip(clients, updates, strict=True))
            measure = build_measure(group.measure) if group.measure is not None else None
            if measure is not None:
                noise = [generator(experiment.seed, "measure", job.round, job.client) for job in group.jobs]
                knobs = [job.knobs for job in group.jobs]
                told = measure.together(workload, inputs()[MODEL], updates, shards, noise, knobs)
                self._together.measured = dict(zip(clients, told, strict=True)) if told is not None else {}
        self._together.share_s = (time.perf_counter() - begin) / len(group.jobs)

    def do(
        self,
        experiment: Experiment,
        workload: Workload[Shard],
        group: Group,
        job: Job,
        inputs: Callable[[], Mapping[str, Record]],
        stage: Stage,
    ) -> Done:
        """One job, from its inputs to the update as it leaves the client."""
        rng = generator(experiment.seed, job.kind, job.round, group.key.exchange, job.client)
        match job.kind:
            case "init":
                stage.name = "init"
                if experiment.monitor is not None:
                    build_watch(experiment.monitor).check(workload)
                model = workload.init(rng)
                described = run_files.workload_values(workload.describe())
                return Done(
                    Update(num_examples=0, groups=model.groups, info={"workload": described, "model": model.info})
                )
            case "held_out":
                return Done(self._evaluate_held_out(workload, job, inputs, stage), read=False)
            case "monitor":
                return self._watch(experiment, workload, group, job, inputs, stage)
            case "collect":
                return self._collect(experiment, workload, group, job, inputs, stage)
            case _:
                return self._client_work(experiment, workload, group, job, inputs, stage, rng)

    def _evaluate_held_out(
        self, workload: Workload[Shard], job: Job, inputs: Callable[[], Mapping[str, Record]], stage: Stage
    ) -> Update:
        stage.name = "inputs"
        records = inputs()
        stage.name = "evaluate"
        held_out = workload.held_out(job.client, int(job.knobs["parts"]))
        if held_out is None:
            return Update(num_examples=0)
        return Update(num_examples=held_out.num_examples, metrics=workload.evaluate(records, held_out))

    def _watch(
        self,
        experiment: Experiment,
        workload: Workload[Shard],
        group: Group,
        job: Job,
        inputs: Callable[[], Mapping[str, Record]],
        stage: Stage,
    ) -> Done:
        """What the run's monitor is sent of a client's data, and the truth beside it where labels are known."""
        stage.name = "inputs"
        records = inputs()
        stage.name = "monitor"
        parts = job.knobs.get("parts")
        shard = workload.shard(job.client) if parts is None else workload.held_out(job.client, int(parts))
        if experiment.monitor is None or shard is None:
            raise UnsupportedFeature(
                f"workload {experiment.workload.name!r} has no held-out data for a monitor; let it watch clients' own"
            )
        rng = generator(experiment.seed, job.kind, job.round, group.key.exchange, job.client)
        seen = build_watch(experiment.monitor)(workload, records, shard, rng)
        update = Update(num_examples=seen.num_examples, metrics=seen.metrics, info=seen.info)
        return Done(update, measured=_count(seen.info))

    def _collect(
        self,
        experiment: Experiment,
        workload: Workload[Shard],
        group: Group,
        job: Job,
        inputs: Callable[[], Mapping[str, Record]],
        stage: Stage,
    ) -> Done:
        """Hand a parked update over; if it is gone (with its process, say), train it again: same job, same bits."""
        stage.name = COLLECT
        parked = self._parked.take(group.key.run_id, job.round, job.client)
        if parked is not None:
            return Done(parked, read=False)
        rng = generator(experiment.seed, "train", job.round, group.collects or 0, job.client)
        again = replace(group, park=False, measure=None)
        done = self._client_work(experiment, workload, again, replace(job, kind="train"), inputs, stage, rng)
        return replace(done, retrained=True)

    def _client_work(
        self,
        experiment: Experiment,
        workload: Workload[Shard],
        group: Group,
        job: Job,
        inputs: Callable[[], Mapping[str, Record]],
        stage: Stage,
        rng: np.random.Generator,
    ) -> Done:
        rule = chained(build_rules(group.rules))
        act: Callable[..., Update] | None = getattr(workload, "act", None)
        shared_s = 0.0
        stage.name = "inputs"
        records = inputs()
        if rule is not None:
            records = rule.incoming(records, job)
        if act is not None:
            stage.name = job.kind
            ref = group.states.get(job.client)
            update = act(job, records, self._fetch(ref) if ref is not None else None, rng, rule)
        else:
            stage.name = "shard"
            shard = workload.shard(job.client)
            stage.name = job.kind
            if self._together.key == group.key and job.client in self._together.updates:
                update, shared_s = self._together.updates[job.client], self._together.share_s
            else:
                update = self._train_or_evaluate(experiment, workload, group, job, records, shard, rule, rng)
        stage.name = "outgoing"
        if rule is not None:
            update = rule.outgoing(update, job.knobs)
        trained = job.kind.split(".")[0] == "train"
        if group.measure is None and not group.park:
            return Done(update, trained=trained, shared_s=shared_s)
        if act is not None:
            raise UnsupportedFeature(
                f"workload {experiment.workload.name!r} does its clients' work itself, so a selection that measures "
                "candidates cannot look into it; choose another selection"
            )
        stage.name = "measure"
        update = own(update)  # measuring uses the workload, whose buffers the update's arrays may be
        measured = self._measure(experiment, workload, group, job, records[MODEL], update, shard)
        if group.park:
            self._parked.put(group.key.run_id, job.round, job.client, update)
            update = replace(update, groups={}, state=None)
        return Done(
            replace(update, info={**update.info, **measured}),
            trained=trained,
            measured=_count(measured),
            shared_s=shared_s,
        )

    def _train_or_evaluate(
        self,
        experiment: Experiment,
        workload: Workload[Shard],
        group: Group,
        job: Job,
        inputs: Mapping[str, Record],
        shard: Shard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        program = _group_program(workload, group)
        if job.kind == "train" and program is not None:  # a group of one: its bits are those of any group
            return program([job], inputs, [shard], [rng])[0]
        if isinstance(workload, KeepsClientState) and job.kind in ("train", "evaluate"):
            ref = group.states.get(job.client)
            state = self._fetch(ref) if ref is not None else None
            if job.kind == "train":
                return workload.train(job, inputs, shard, rule, rng, state)
            return Update(num_examples=shard.num_examples, metrics=workload.evaluate(inputs, shard, state), state=state)
        if job.kind == "train":
            return workload.train(job, inputs, shard, rule, rng)
        if job.kind == "evaluate":
            return Update(num_examples=shard.num_examples, metrics=workload.evaluate(inputs, shard))
        if job.kind == "measure":
            return Update(num_examples=shard.num_examples)
        raise BadUpdate(
            f"workload {experiment.workload.name!r} has no action {job.kind!r}; it can train, evaluate and be measured"
        )

    def _measure(
        self,
        experiment: Experiment,
        workload: Workload[Shard],
        group: Group,
        job: Job,
        model: Record,
        update: Update,
        shard: Shard,
    ) -> Info:
        measure = build_measure(group.measure) if group.measure is not None else None
        if measure is None:
            return {}
        if self._together.key == group.key and job.client in self._together.measured:
            return self._together.measured[job.client]
        rng = generator(experiment.seed, "measure", job.round, job.client)
        return measure(workload, model, update, shard, rng, job.knobs)


def _group_program(workload: Workload[Shard], group: Group) -> Callable[..., list[Update]] | None:
    """The workload's program for whole groups, where it wants that used and no rule has to see every step."""
    if isinstance(workload, TrainsGroups) and workload.program == "group" and not group.rules:
        return workload.train_group
    return None


def _count(value: Any) -> int:
    """Floats in a measure's JSON."""
    if isinstance(value, Mapping):
        return sum(_count(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return sum(_count(inner) for inner in value)
    return int(isinstance(value, int | float) and not isinstance(value, bool))
