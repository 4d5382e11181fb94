"""Round 0: one node creates the initial model and describes the data; if it fails, another one tries.

Any connected node may try, each at most once. The model is the same on every node: its
randomness comes from the experiment's seed and the job's key alone (`generator(seed, "init", 0, 0, 0)`), and a job that
is reassigned has the same key. What a workload reads for it, such as pretrained weights, has to be the same on
every node, as it has to be for training.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from fedloom.core import run_files
from fedloom.core.accumulators import UpdateList
from fedloom.core.errors import BadUpdate, ClientFailed, FedloomError, QuorumNotReached
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import INITIAL, MODEL, Array, Exchange, Job, Record
from fedloom.server.fleet.open_exchange import Answer, OpenExchange
from fedloom.server.rounds.closing import ClosingTerms, usage_kind
from fedloom.server.rounds.counts import Collected
from fedloom.server.rounds.request import ExchangeRequest, Phase

_INITIAL = Exchange(jobs=(Job(round=0, client=0, kind="init", inputs=(), of_client=False),), accumulator="separate")
_MOST = 20
"""Limit of names, and of different reasons, that an error lists; the run's events have all."""


def initial_request(deadline_s: float | None) -> ExchangeRequest:
    """Return the request to one node before round 1.

    Args:
        deadline_s: seconds after which another node gets it, too; None waits for the first.
    """
    return ExchangeRequest(
        round=0,
        index=int(Phase.TRAIN),
        exchange=_INITIAL,
        terms=ClosingTerms(quota=1, deadline_s=deadline_s, asks_another=True),
        emit_progress=False,
        no_answer=_no_initial_model,
    )


def initial_model(collected: Collected) -> tuple[Record, WorkloadInfo]:
    """Return the initial model, and the workload's description.

    Raises:
        BadUpdate: the node sent no valid description.
    """
    total = collected.total
    if not isinstance(total, UpdateList):
        raise BadUpdate(f"the initial model came as a {type(total).__name__}; expected an UpdateList")
    _, update = total.updates[0]
    try:
        info = run_files.workload_of(update.info["workload"])
    except ValueError as exc:
        raise BadUpdate(f"the agent that made the initial model sent {exc}") from exc
    return Record(update.groups, update.info["model"]), info


def begun_with(initial: Record, start: Record | None) -> Record:
    """Return the record a strategy begins with: the workload's, with the model of an earlier run in its place.

    Args:
        initial: the workload's initial record.
        start: group `model`: the earlier model; its other groups and its info are added, and `initial`, the workload's
            own model, if `initial` is true in its info. None for the workload's initial model.

    Raises:
        BadUpdate: the earlier model has other arrays than the workload's.
    """
    if start is None:
        return initial
    fresh, given = initial.groups.get(MODEL, {}), start.groups[MODEL]
    for name in sorted(fresh.keys() | given.keys()):
        here, there = fresh.get(name), given.get(name)
        if here is None or there is None or here.shape != there.shape or here.dtype != there.dtype:
            raise BadUpdate(
                f"the model this run begins with does not fit its workload in array {name!r}: it is {_form(there)}, "
                f"the workload's is {_form(here)}. Begin with a model of the same workload and settings"
            )
    groups = {**initial.groups, **start.groups}
    info = {**initial.info, **{key: value for key, value in start.info.items() if key != INITIAL}}
    return Record({**groups, INITIAL: fresh} if start.info.get(INITIAL) else groups, info)


def _form(array: Array | None) -> str:
    return "missing" if array is None else f"{array.dtype} of shape {array.shape}"


def _no_initial_model(opened: OpenExchange, answer: Answer) -> FedloomError:
    """Return the error for a run without an initial model: which nodes tried, and why each failed.

    Nodes with the same message are named together. If all found the same kind of wrong input, the error
    is of that kind.

    Args:
        opened: the exchange, with the earlier nodes' failures.
        answer: the last node's failure.
    """
    failures = [(name, failure) for (_, name), failure in opened.failed.items()]
    if answer.result is not None:
        failures += [(answer.node, failure) for failure in answer.result.failures]
    causes: dict[str, list[str]] = {}
    for name, failure in failures:
        causes.setdefault(failure.words, []).append(name)
    failed = {name for name, _ in failures}
    for name, refusal in opened.refusals.items():
        if name not in failed:
            causes.setdefault(f"refused: {refusal.reason}", []).append(name)
    if answer.result is None and answer.stage == "worker":
        causes.setdefault(f"{answer.error}: {answer.lost}", []).append(answer.node)
    if sum(map(len, causes.values())) > len(failures):
        return QuorumNotReached(_listed(causes))
    first = failures[0][1]
    kind = usage_kind([failure for _, failure in failures])
    if len(causes) > 1:
        return (kind or ClientFailed)(_listed(causes))
    alike = f"\nReported by {_named(causes[first.words])} when creating the initial model." if len(failures) > 1 else ""
    if kind is not None:
        return kind((first.message if first.traceback else first.describe()) + alike)
    return ClientFailed(first.describe() + alike)


def _listed(causes: Mapping[str, Sequence[str]]) -> str:
    reported = "\n".join(f"  {_named(names)}: {words}" for words, names in itertools.islice(causes.items(), _MOST))
    more = f"\n  … and {len(causes) - _MOST} other reasons" if len(causes) > _MOST else ""
    return (
        "no node could create the initial model. Fix one of the causes below, or select capable nodes with "
        f"fleet.labels, then submit the run again:\n{reported}{more}"
    )


def _named(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _MOST} more" if len(nodes) > _MOST else ""
    return ", ".join(nodes[:_MOST]) + more
