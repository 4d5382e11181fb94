"""A node's policy in sentences, as its owner reads them when the node starts."""

from __future__ import annotations

from collections.abc import Iterator

from fedloom.client.policy import Limits, Policy
from fedloom.client.withholding import Withhold


def rules_in_force(policy: Policy) -> list[str]:
    """Return one sentence for each rule that is in force, those that only allow something included."""
    return [
        *_workloads(policy),
        *_submitters("runs", policy.submitters, policy.roles),
        *(["every run is approved by the owner's command first"] if policy.approval.command else []),
        *_limits(policy.limits),
        *_leaving(policy),
        *_withheld(policy.withhold),
    ]


def _workloads(policy: Policy) -> Iterator[str]:
    if not policy.workloads:
        yield "no workload is allowed: all work is refused"
    for name, allowed in policy.workloads.items():
        data = f", with $DATA = {allowed.data}" if allowed.data is not None else ", without data of this machine"
        columns = f", columns {', '.join(allowed.columns)}" if allowed.columns is not None else ""
        yield f"workload {name} is allowed{data}{columns}"
        if not allowed.evaluation:
            yield f"workload {name}: no model is evaluated on the validation data of this node"
        yield from _submitters(f"runs of {name}", allowed.submitters, allowed.roles)
    for code in policy.code:
        yield f"code {code} is allowed"


def _submitters(what: str, names: tuple[str, ...] | None, roles: tuple[str, ...] | None) -> Iterator[str]:
    if names is not None:
        yield f"{what} are done for {', '.join(names) or 'nobody'} only"
    if roles is not None:
        yield f"{what} are done for the roles {', '.join(roles) or 'none'} only"


def _limits(limits: Limits) -> Iterator[str]:
    per_day = {"runs": limits.runs_per_day, "rounds": limits.rounds_per_day, "bytes": limits.bytes_per_day}
    yield from (f"at most {most:,} {what} a day" for what, most in per_day.items() if most is not None)
    if limits.hours:
        yield f"works only at {', '.join(limits.hours)}, local time"
    if limits.hook:
        yield "works only if the owner's hook approves"
    if limits.min_examples:
        yield f"a client needs at least {limits.min_examples:,} examples"
    if limits.min_cohort:
        yield f"a run must state at least {limits.min_cohort:,} clients a round"
    if not limits.alone:
        yield "no exchange without other clients, but for the initial model and the description of the data"


def _leaving(policy: Policy) -> Iterator[str]:
    if policy.filters.any:
        yield "each update passes the node's filters before it leaves"
    yield f"messages and tracebacks of failures {'leave' if policy.tracebacks else 'stay on'} this node"
    shared = "may" if policy.share_local_model else "may not"
    yield f"a model trained here alone {shared} be evaluated at other sites"


def _withheld(withhold: Withhold) -> Iterator[str]:
    parts = {
        "label counts": withhold.label_counts,
        "names of classes": withhold.class_names,
        "statistics": withhold.statistics,
        "digests": withhold.digests,
        "firing rates": withhold.firing_rates,
        "sizes": withhold.sizes == "withheld",
    }
    hidden = [name for name, is_hidden in parts.items() if is_hidden]
    if hidden:
        yield f"withheld: {', '.join(hidden)}"
    if withhold.sizes == "bucketed":
        yield "sizes leave rounded up to a power of two"
