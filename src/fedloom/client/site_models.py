"""Trains the global model on a site's own data, to evaluate it there or, where the policy allows it, at other sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedloom.client.answer_check import check_answer
from fedloom.client.client_state import WORKLOAD, split
from fedloom.client.parked import own
from fedloom.client.turn import Turn
from fedloom.core.errors import UnsupportedFeature
from fedloom.core.protocols import Inputs, is_empty
from fedloom.core.records import MODEL, Arrays, Record, Update


def tuned(turn: Turn) -> Update:
    """Return the metrics, on the site's validation data, of the global model after local training."""
    turn.run.admit_evaluation()
    inputs, _ = _trained(turn)
    turn.stage = "evaluate"
    held_out = turn.run.workload.held_out(0, 1)
    if inputs is None or held_out is None:
        return Update(num_examples=0)
    return Update(num_examples=held_out.num_examples, metrics=turn.run.workload.evaluate(inputs, held_out))


def local_model(turn: Turn) -> Update:
    """Return the global model after local training, for other sites to evaluate.

    Raises:
        PolicyRefused: the node's policy does not let such a model leave.
    """
    turn.run.admit_sharing()
    inputs, examples = _trained(turn)
    return Update(num_examples=examples, groups={} if inputs is None else inputs[MODEL].groups)


def _trained(turn: Turn) -> tuple[Inputs | None, int]:
    """Train as often as the knob `times` says; returns the new inputs, None without examples, and the examples."""
    inputs, workload = turn.inputs, turn.run.workload
    turn.stage = "shard"
    shard = workload.shard(turn.own_job.client)
    turn.run.admit_examples(turn.job.client, shard)
    if is_empty(shard):
        return None, 0
    state, rng = split(turn.run.clients.read(turn.group, turn.job.client)).get(WORKLOAD), turn.rng("fine_tune")
    job = replace(turn.own_job, kind="train", knobs={})
    stateful = turn.run.abilities.keeps_state
    turn.stage = "train"
    for _ in range(int(turn.job.knobs["times"])):
        if stateful is not None:
            update = stateful.train(job, inputs, shard, None, rng, state)
        else:
            update = workload.train(job, inputs, shard, None, rng)
        update = own(check_answer(update, "train"))
        state = update.state or state
        inputs = {**inputs, MODEL: _with(inputs[MODEL], update.groups)}
    return inputs, shard.num_examples


def _with(model: Record, trained: Mapping[str, Arrays]) -> Record:
    """Return a model with arrays replaced by trained ones.

    Raises:
        UnsupportedFeature: training has returned none, or others than the model has.
    """
    known = {(group, name) for group, name, _ in model.items()}
    found = {(group, name) for group, name, _ in Record(trained).items()}
    if not found or not found <= known:
        more = ", ".join(f"{group}/{name}" for group, name in sorted(found - known)[:3]) or "no arrays"
        raise UnsupportedFeature(
            f"local training of the global model returned {more}, which are no arrays of it, so it cannot be evaluated "
            "in their place"
        )
    groups = {group: {**arrays, **trained.get(group, {})} for group, arrays in model.groups.items()}
    return Record(groups, model.info)
