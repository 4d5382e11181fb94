"""Asks nodes for their verdicts on a submitted run, and makes notes for its submitter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedloom.core.config import Experiment
from fedloom.core.config.sections import RuntimeSettings
from fedloom.core.errors import PolicyRefused
from fedloom.core.messages import Verdict
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.planned import RunFacts
from fedloom.server.run_views import Owner

_SHOWN = 20
"""Nodes that a message lists at most."""


def receive(coordinator: Coordinator, experiment: Experiment, owner: Owner) -> list[str]:
    """Collect the verdicts of the connected nodes that a run selects; returns notes for its submitter.

    Args:
        coordinator: of the nodes.
        experiment: the run's.
        owner: who submits it.

    Raises:
        PolicyRefused: every one of them refuses it for good; the message has each node's reason.
    """
    run = RunFacts.of("submission", experiment, (owner.name, owner.role), code_names=True)
    verdicts = coordinator.inquire(run)
    known = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    if verdicts and len(known) == len(verdicts) and all(verdict.is_final for verdict in known.values()):
        raise PolicyRefused(
            f"nothing was queued: {_counted(len(known))} would have to do this run, and every one refuses it:\n"
            + "\n".join(_reasons(known.items()))
            + "\nChange what they refuse, or select other nodes with fleet.labels"
        )
    return [*_without_effect(experiment), *_waits_for(experiment, coordinator, verdicts), *_refusals(known)]


def _without_effect(experiment: Experiment) -> list[str]:
    """Return a note about settings of the runtime that were changed: a server's runs have none."""
    given, usual = experiment.runtime.model_dump(), RuntimeSettings().model_dump()
    changed = [f"runtime.{key} = {value!r}" for key, value in given.items() if value != usual[key]]
    return [f"without effect on a server, whose nodes do the work: {', '.join(changed)}"] if changed else []


def _waits_for(experiment: Experiment, coordinator: Coordinator, verdicts: dict[str, Verdict | None]) -> list[str]:
    """Return the condition that a run waits for before it can begin."""
    fleet = experiment.fleet
    labels = ", ".join(f"{key}={value}" for key, value in sorted(fleet.labels.items()))
    wanted = f"with {labels} " if labels else ""
    if not verdicts:
        online = sorted(name for name, node in coordinator.nodes().items() if node.online)
        others = f" (connected: {_some(online)})" if online else ""
        return [f"no node {wanted}is connected{others}; the run waits for one"]
    if len(verdicts) < fleet.min_nodes:
        return [f"{_counted(len(verdicts))} {wanted}connected; the run waits for {fleet.min_nodes} (fleet.min_nodes)"]
    missing = sorted(set(experiment.site_names) - set(verdicts))
    if missing:
        return [f"not all sites of `clients` are connected; the run waits for {_some(missing)}"]
    if experiment.of_sites and len(verdicts) < experiment.min_sites:
        connected = f"{_counted(len(verdicts))} {wanted}connected ({_some(sorted(verdicts))})"
        return [f"{connected}; the run waits for {experiment.min_sites} sites (round.min_sites)"]
    known = [verdict for verdict in verdicts.values() if verdict is not None]
    if len(known) == len(verdicts) and all(verdict.kind for verdict in known):
        return ["every connected node refuses it for now; the run waits until one does not"]
    return []


def _refusals(known: dict[str, Verdict]) -> list[str]:
    """Return a note about the nodes that refuse, where others do not."""
    refusing = [(name, verdict) for name, verdict in known.items() if verdict.kind]
    return ["nodes that refuse it:\n" + "\n".join(_reasons(refusing))] if refusing else []


def _reasons(verdicts: Iterable[tuple[str, Verdict]]) -> list[str]:
    """Return a line for each node, nodes with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, verdict in sorted(verdicts):
        by_reason.setdefault(verdict.reason or verdict.kind, []).append(name)
    lines = [f"  {_some(names)}: {reason}" for reason, names in by_reason.items()]
    return [*lines[:_SHOWN], *([f"  … and {len(lines) - _SHOWN} other reasons"] if len(lines) > _SHOWN else [])]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _counted(nodes: int) -> str:
    return f"{nodes} node{'s' if nodes != 1 else ''}"
