"""Origin of the run and how to reproduce it: data, settings, environment, commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from fedloom.core.records import Info
from fedloom.core.run_files import EXPERIMENT
from fedloom.reporting.lines import examples_lines
from fedloom.reporting.markup import Content, Markup, table, tag
from fedloom.reporting.page import facts, section
from fedloom.reporting.quantities import count_text
from fedloom.reporting.run_folder import RunFolder

_COUNTED = ("num_train", "num_test", "num_labels", "left_out", "remarks")
"""Describes a run's provenance in words."""


def data(run: RunFolder) -> Markup:
    """Return the provenance of the examples, as the workload states it."""
    stated = _data(run)
    if not stated:
        return section("Data", tag("p", "This workload does not describe the source of its data.", class_="empty"))
    counted: dict[str, Content] = {}
    for name, text in examples_lines(stated):
        counted[name] = f"{counted[name]}; {text}" if name in counted else text
    others = {str(key): _value(value) for key, value in stated.items() if not (counted and key in _COUNTED)}
    return section("Data", facts({**counted, **others}, "Provenance"))


def settings(run: RunFolder) -> Markup:
    """Return all settings of the experiment, resolved, and its environment."""
    rows = [(tag("code", key), tag("code", _value(value))) for key, value in run.settings().items()]
    parts: list[Markup] = [table(("key", "value"), rows, caption=f"As resolved in {EXPERIMENT}", text=2)]
    if run.code:
        parts.append(facts(dict(run.code), "Code the run began with"))
    if run.summary:
        made: dict[str, Content] = {
            "runtime": f"{run.summary.runtime}, {run.summary.workers} workers",
            "group size": count_text(run.summary.group_size),
            **run.summary.environment,
        }
        parts.append(facts(made, "Environment"))
    return section("Settings", *parts)


def reproduction(run: RunFolder) -> Markup:
    """Return the commands that reproduce this run, and the expected digest."""
    folder, settings = shlex.quote(str(run.path)), shlex.quote(str(run.path / EXPERIMENT))
    lines = [f"fedloom run {settings}", f"fedloom report {folder}"]
    if run.status != "done":
        lines.insert(0, f"fedloom resume {folder}")
    digest = run.summary.model_sha256 if run.summary else None
    return section(
        "Reproduce",
        tag(
            "p",
            "The same experiment and seed give the same model on any runtime with any number of workers, on the "
            "same kind of machine.",
        ),
        tag("pre", "\n".join(lines)),
        tag("p", "Digest of the final model's arrays (model_sha256): ", tag("code", digest)) if digest else None,
        tag(
            "p",
            "Next to this page: experiment.toml, rounds.jsonl, events.jsonl, summary.json, and model/ with the final "
            "arrays in safetensors format.",
            class_="note",
        ),
        _sessions(run),
    )


def _sessions(run: RunFolder) -> Markup | None:
    """Return when the run was started and resumed, if more than once."""
    begun = [event for event in run.events if event.get("event") == "RunStarted"]
    rows = [
        (str(event.get("at", ""))[:19], str(event.get("first_round", "")), str(event.get("where", "")))
        for event in begun
    ]
    return table(("started", "from round", "where"), rows, caption="Sessions", text=3) if len(rows) > 1 else None


def _data(run: RunFolder) -> Info:
    if run.workload and run.workload.data:
        return run.workload.data
    return (run.last_event("RunStarted") or {}).get("data") or {}


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) or "{}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(inner) for inner in value) or "[]"
    return str(value)
