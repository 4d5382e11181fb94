"""State stored for a client between its jobs: the workload's part and each rule's, as one record.

A stored record lists its parts in `info`, and numbers their groups of arrays, so that no name has to be parsed:

    info    {"parts": [{"name": "workload", "groups": {"own": "0"}, "info": {…}}, {"name": "rule clip", …}]}
    groups  {"0": {…}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedloom.core.errors import BadFrame
from fedloom.core.protocols import LocalRule
from fedloom.core.records import Arrays, Info, Record

Parts = Mapping[str, Record]
"""A client's state by part: the workload's, and one for each rule with a state."""
WORKLOAD = "workload"
"""Name of the workload's part."""


def rule_parts(rules: Sequence[str]) -> list[str]:
    """Name the parts of an exchange's rules, in order; a rule that occurs again is counted."""
    names = []
    for index, rule in enumerate(rules):
        earlier = rules[:index].count(rule)
        names.append(f"rule {rule}" if not earlier else f"rule {rule} {earlier + 1}")
    return names


def compose(parts: Parts) -> Record | None:
    """Return a client's parts as the record that is stored; None if there are none."""
    if not parts:
        return None
    groups: dict[str, Arrays] = {}
    described: list[Info] = []
    for name, record in parts.items():
        numbers = {group: str(len(groups) + index) for index, group in enumerate(record.groups)}
        groups |= {numbers[group]: arrays for group, arrays in record.groups.items()}
        described.append({"name": name, "groups": numbers, "info": record.info})
    return Record(groups, {"parts": described})


def split(stored: Record | None) -> dict[str, Record]:
    """Return the parts of a stored record; none for None.

    Raises:
        BadFrame: it is not a record that `compose` made.
    """
    if stored is None:
        return {}
    try:
        return {
            part["name"]: Record({group: stored.groups[key] for group, key in part["groups"].items()}, part["info"])
            for part in stored.info["parts"]
        }
    except (KeyError, TypeError, AttributeError) as exc:
        raise BadFrame(
            f"a client's stored state: expected a record with a list of parts, found one with info "
            f"{sorted(stored.info)} and groups {sorted(stored.groups)} ({type(exc).__name__}: {exc}). Another version "
            "of fedloom stored it; start a new run"
        ) from exc


def stored_anew(stored: Mapping[str, Record], work: Record | None, rules: Mapping[str, LocalRule]) -> Record | None:
    """Return the client's new stored state: new parts in place of old ones; None if there are none."""
    if work is None and not rules:
        return None
    reported = {WORKLOAD: work, **{name: rule.state() for name, rule in rules.items()}}
    fresh = {name: record for name, record in reported.items() if record is not None}
    return compose({**stored, **fresh}) if fresh else None
