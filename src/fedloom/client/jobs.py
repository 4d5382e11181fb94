"""One job of one client: dispatched to a method of the workload, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedloom.client.answer_check import check_answer
from fedloom.client.client_state import WORKLOAD, rule_parts, split, stored_anew
from fedloom.client.descriptions import described, initial
from fedloom.client.group_program import GroupProgram, group_program
from fedloom.client.parked import ParkedUpdates, own
from fedloom.client.site_models import local_model, tuned
from fedloom.client.turn import Turn
from fedloom.client.update_check import check_update
from fedloom.core.errors import BadUpdate, UnsupportedFeature
from fedloom.core.plugins import build_measure, build_rules, build_watch, chained
from fedloom.core.protocols import (
    Action,
    Inputs,
    LocalRule,
    Shard,
    is_empty,
)
from fedloom.core.records import MODEL, Info, Record, Update
from fedloom.core.text import shown

COLLECT = "collect"
"""Kind of a job that sends the update a client parked earlier in the round."""


@dataclass(frozen=True, slots=True)
class Done:
    """A finished job."""

    update: Update
    """Its `state` is the client's whole stored state, all parts together; None if the stored state stays."""
    read: bool = True
    """Whether the client read the job's inputs."""
    trained: bool = False
    """Whether the client trained to do the job."""
    retrained: bool = False
    """Whether that was because its parked update was lost."""
    measured: int = 0
    """Number of floats a measure added to `update.info`."""
    shared_s: float = 0.0
    """The client's share of the time its whole group took; seconds."""


@dataclass(frozen=True, slots=True)
class _Work:
    """The workload's result for a job."""

    update: Update
    shard: Shard | None = None
    """The client's data; None for an action, which may concern something else."""
    shared_s: float = 0.0
    empty: bool = False
    """Whether there was nothing to do, because the client has no examples."""


class JobRunner:
    """Does jobs, of one run after another.

    Args:
        parked: stores the updates that wait to be collected.
        program: trains whole groups, for workloads that support it.
    """

    def __init__(self, parked: ParkedUpdates, program: GroupProgram) -> None:
        self._parked, self._program = parked, program

    def do(self, turn: Turn) -> Done:
        """Do a job, from its inputs to the update as it leaves the client."""
        turn.run.workload  # noqa: B018  # loaded in the stage of that name
        turn.stage = "data"
        turn.run.check_data()
        turn.stage = "load"
        match turn.job.kind:
            case "init":
                return _checked(turn, Done(initial(turn)))
            case "describe":
                return _checked(turn, Done(described(turn), read=False))
            case "held_out":
                return _checked(turn, _evaluate_held_out(turn))
            case "tuned":
                return _checked(turn, Done(tuned(turn), read=False))
            case "local":
                return _checked(turn, Done(local_model(turn), read=False))
            case "monitor":
                return _checked(turn, _watch(turn))
            case "collect":
                return self._collect(turn)
            case _:
                return self._client_work(turn)

    def _collect(self, turn: Turn) -> Done:
        """Send a parked update; if it is lost (with its process, say), train it again: same job, same bits."""
        turn.stage = COLLECT
        parked = self._parked.take(turn.group.key.run_id, turn.job.round, turn.job.client)
        if parked is not None:
            return Done(parked, read=False)
        again = turn.trained_again()
        try:
            done = self._client_work(again)
            return replace(done, retrained=done.trained)
        finally:
            turn.stage = again.stage

    def _client_work(self, turn: Turn) -> Done:
        """Run the workload's job, after the rules on its inputs and before the rules on its update."""
        rules = build_rules(turn.group.rules) if turn.group.rules else []
        inputs = turn.inputs
        stored = split(turn.run.clients.read(turn.group, turn.job.client))
        parts = dict(zip(rule_parts(turn.group.rules), rules, strict=True)) if rules else {}
        for name, each in parts.items():
            each.restore(stored.get(name))
        rule = chained(rules) if rules else None
        if rule is not None:
            inputs = rule.incoming(inputs, turn.job)
        work = self._work(turn, inputs, rule, stored.get(WORKLOAD))
        turn.stage = "outgoing"
        if work.empty:
            return Done(work.update)
        update = check_answer(work.update, turn.job.kind)
        if rule is not None:
            update = check_answer(rule.outgoing(update, turn.job.knobs), f"{turn.job.kind} and its rules")
        state = stored_anew(stored, update.state, parts)
        if state is not update.state:
            update = check_answer(replace(update, state=state), turn.job.kind)
        if turn.kind == "train":
            check_update(update, turn.group, turn.job.client, lambda: turn.inputs)
        done = Done(update, trained=turn.kind == "train", shared_s=work.shared_s)
        if turn.group.measure is None and not turn.group.park:
            return done
        return self._measured(turn, done, inputs, work.shard)

    def _work(self, turn: Turn, inputs: Inputs, rule: LocalRule | None, state: Record | None) -> _Work:
        workload, job = turn.run.workload, turn.own_job
        turn.stage = job.kind
        action = _action(turn)
        if action is not None:
            return _Work(action(job, inputs, state, turn.rng()))
        if turn.kind not in ("train", "evaluate", "measure"):
            raise BadUpdate(
                f"workload {turn.run.experiment.workload.name!r} has no action {job.kind!r}; it has "
                f"{', '.join(('train', 'evaluate', 'measure', *turn.run.abilities.actions))}"
            )
        turn.stage = "shard"
        shard = workload.shard(job.client)
        turn.run.admit_examples(turn.job.client, shard)
        turn.stage = job.kind
        if is_empty(shard):
            return _Work(Update(num_examples=0), shard, empty=True)
        if turn.kind == "measure":
            return _Work(Update(num_examples=shard.num_examples), shard)
        if turn.kind == "evaluate":
            return _Work(_evaluated(turn, inputs, shard, state), shard)
        made = self._program.update(turn)
        if made is not None:
            return _Work(made[0], shard, made[1])
        program = group_program(turn)
        if program is not None:  # a group of one: its bits are those of any group
            return _Work(program.train_group([job], inputs, [shard], [turn.rng()])[0], shard)
        stateful = turn.run.abilities.keeps_state
        if stateful is not None:
            return _Work(stateful.train(job, inputs, shard, rule, turn.rng(), state), shard)
        return _Work(workload.train(job, inputs, shard, rule, turn.rng()), shard)

    def _measured(self, turn: Turn, done: Done, inputs: Inputs, shard: Shard | None) -> Done:
        """Add the selection's measure, and park the update if required."""
        if shard is None:
            raise UnsupportedFeature(
                f"workload {turn.run.experiment.workload.name!r} does {turn.job.kind!r} as a custom action, so a "
                "selection that measures candidates cannot be used with it; choose another selection"
            )
        turn.stage = "measure"
        update = own(done.update)  # measuring uses the workload, whose buffers the update's arrays may be
        measured: Info = {}
        if turn.group.measure is not None:
            found = self._program.measured(turn)
            if found is None:
                measure, rng = build_measure(turn.group.measure), turn.rng("measure")
                found = _report(measure(turn.run.workload, inputs[MODEL], update, shard, rng, turn.job.knobs))
            measured = found
        if turn.group.park:
            self._parked.put(turn.group.key.run_id, turn.job.round, turn.job.client, update)
            update = replace(update, groups={}, state=None)
        update = check_answer(replace(update, info={**update.info, **measured}), "measure")
        return replace(done, update=update, measured=_count(measured))


def _report(found: object) -> Info:
    """Return a measure's report.

    Raises:
        BadUpdate: it is something else.
    """
    if not isinstance(found, Mapping):
        raise BadUpdate(f"'measure' returned {shown(found)}; expected a dict of numbers by name")
    return found


def _checked(turn: Turn, done: Done) -> Done:
    """Return a finished job with its update checked, as what leaves the client."""
    turn.stage = "outgoing"
    return replace(done, update=check_answer(done.update, turn.job.kind))


def _evaluate_held_out(turn: Turn) -> Done:
    """Evaluate the global model on a part of the test set: that of the knob `part`, or of the client's number."""
    turn.run.admit_evaluation()
    inputs = turn.inputs
    turn.stage = "evaluate"
    part = int(turn.job.knobs.get("part", turn.job.client))
    held_out = turn.run.workload.held_out(part, int(turn.job.knobs["parts"]))
    if held_out is None:
        return Done(Update(num_examples=0), read=False)
    metrics = turn.run.workload.evaluate(inputs, held_out)
    return Done(Update(num_examples=held_out.num_examples, metrics=metrics), read=False)


def _watch(turn: Turn) -> Done:
    """Observe the global model on a client's data, or on a part of the held-out data, for the run's monitor."""
    inputs = turn.inputs
    turn.stage = "monitor"
    workload, monitor, parts = turn.run.workload, turn.run.experiment.monitor, turn.job.knobs.get("parts")
    part = int(turn.job.knobs.get("part", turn.job.client))
    shard = workload.shard(turn.own_job.client) if parts is None else workload.held_out(part, int(parts))
    if monitor is None or shard is None:
        raise UnsupportedFeature(
            f"workload {turn.run.experiment.workload.name!r} has no held-out data for a monitor; have it watch "
            "clients' data"
        )
    if parts is None:
        turn.run.admit_examples(turn.job.client, shard)
        if is_empty(shard):
            return Done(Update(num_examples=0))
    seen = build_watch(monitor)(workload, inputs, shard, turn.rng())
    update = Update(num_examples=seen.num_examples, metrics=seen.metrics, info=seen.info)
    return Done(update, measured=_count(seen.info))


def _evaluated(turn: Turn, inputs: Inputs, shard: Shard, state: Record | None) -> Update:
    stateful = turn.run.abilities.keeps_state
    if stateful is not None:
        return Update(num_examples=shard.num_examples, metrics=stateful.evaluate(inputs, shard, state))
    return Update(num_examples=shard.num_examples, metrics=turn.run.workload.evaluate(inputs, shard))


def _action(turn: Turn) -> Action | None:
    """Return the workload's action for a job: by the whole name of its kind, otherwise by its first part."""
    actions, kind = turn.run.abilities.actions, turn.job.kind
    if not actions:
        return None
    return actions.get(kind) or actions.get(kind.split(".")[0])


def _count(value: object) -> int:
    """Return the number of floats in a measure's JSON."""
    if isinstance(value, Mapping):
        return sum(_count(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return sum(_count(inner) for inner in value)
    return int(isinstance(value, int | float) and not isinstance(value, bool))
