"""Terminal output of a run, as plain strings: the start, a round, a failed client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedloom.core.events import RunStarted
from fedloom.core.history import BestRound, RoundRecord
from fedloom.core.records import ClientFailure, Info
from fedloom.reporting.plain import harmless
from fedloom.reporting.quantities import NOTHING, bytes_text, metric_text, plural, seconds_text

_MOST_CAUSE = 300


def start_lines(event: RunStarted) -> list[tuple[str, str]]:
    """Return the facts shown before the first round, as (name, value)."""
    groups = f", in groups of {event.group_size}" if event.group_size > 1 else ""
    facts = [
        ("runtime", f"{event.runtime}, {plural(event.workers, 'worker')}: {event.where}"),
        ("data", data_line(event.data)),
        *examples_lines(event.data),
        ("model", plural(event.num_parameters, "parameter") if event.num_parameters else "none before the first round"),
        ("clients", f"{event.clients:,}, {event.cohort:,} sampled per round{groups}"),
        ("rounds", rounds_text(event.rounds) + _resumed(event)),
    ]
    return [(name, harmless(value)) for name, value in facts]


def data_line(data: Info) -> str:
    """Return the source of the examples: name, kind, licence, the start of the digest."""
    if not data:
        return "not stated by the workload"
    digest = str(data.get("sha256") or "")[:12]
    named = [str(data[key]) for key in ("kind", "licence") if data.get(key)] + ([f"sha256 {digest}…"] if digest else [])
    return str(data.get("name", "unnamed")) + (f" ({', '.join(named)})" if named else "")


def examples_lines(data: Info) -> list[tuple[str, str]]:
    """Return numbers of examples and classes, omitted ones, and remarks, as (name, value)."""
    train, test, classes = (data.get(name) for name in ("num_train", "num_test", "num_labels"))
    if not isinstance(train, int):
        return []
    counts = [f"{train:,} for training"]
    counts += [f"{test:,} held out"] if isinstance(test, int) else []
    counts += [f"{classes:,} class{'' if classes == 1 else 'es'}"] if isinstance(classes, int) else []
    notes = [(name, data.get(key)) for name, key in (("omitted", "left_out"), ("note", "remarks"))]
    lines = [(name, str(what)) for name, found in notes if isinstance(found, list | tuple) for what in found]
    return [("examples", ", ".join(counts)), *lines]


def round_cells(record: RoundRecord, names: Sequence[tuple[str, bool]]) -> list[str]:
    """Return a round as a table's row.

    Args:
        record: the round.
        names: the metrics to show, each with whether it is on held-out data.
    """
    return [
        f"{record.round}",
        *(metric_text(_measured(record, held_out).get(name)) for name, held_out in names),
        f"{len(record.cohort) - len(record.failures)}/{len(record.cohort)}",
        bytes_text(record.traffic.bytes_up),
        bytes_text(record.traffic.bytes_down),
        seconds_text(record.timing.total_s),
    ]


def best_text(best: BestRound) -> str:
    """Return the best round of a run, whose model is the final one."""
    early = "; the run ended early" if best.stopped_early else ""
    return f"{best.round:,}: {best.metric} {metric_text(best.value)}, the final model's{early}"


def rounds_text(rounds: int | None) -> str:
    """Return the number of a run's rounds, or that it is open."""
    return "open" if rounds is None else f"{rounds:,}"


def round_head(names: Sequence[tuple[str, bool]]) -> list[str]:
    """Return the names of `round_cells`."""
    return ["round", *(column_name(name, held_out) for name, held_out in names), "updates", "up", "down", "time"]


def round_line(record: RoundRecord, rounds: int | None, names: Sequence[tuple[str, bool]], left_s: float | None) -> str:
    """Return a round as one line for a log file; `rounds` is the run's number of rounds, None if open."""
    cells = dict(zip(round_head(names), round_cells(record, names), strict=True))
    measured = [
        f"{column_name(name, held_out)} {cells[column_name(name, held_out)]}"
        for name, held_out in names
        if cells[column_name(name, held_out)] != NOTHING
    ]
    parts = [
        f"round {record.round}/{rounds_text(rounds)}",
        *measured,
        f"{cells['updates']} updates",
        f"{cells['up']} up",
        f"{cells['down']} down",
        cells["time"],
    ]
    if left_s is not None and rounds is not None and record.round < rounds:
        parts.append(f"ETA {seconds_text(left_s)}")
    return harmless("  ".join(parts))


def column_name(name: str, held_out: bool) -> str:
    """Return a column's name: held-out metrics have their own name, training's are marked."""
    return name if held_out else f"train {name}"


def _resumed(event: RunStarted) -> str:
    if event.first_round == 1:
        return ""
    if event.rounds is not None and event.first_round > event.rounds:
        return ", all already finished"
    return f", resuming with round {event.first_round:,}"


def lost_line(failure: ClientFailure) -> str:
    """Return a failed client with the cause, on one line."""
    where = f" on {failure.node}" if failure.node else ""
    error, message = cause(failure)
    message = " ".join(message.split())
    message = message if len(message) <= _MOST_CAUSE else f"{message[:_MOST_CAUSE]}…"
    who = f"client {failure.client} failed in round {failure.round}, stage {failure.stage}{where}"
    return harmless(f"{who}: {error}: {message}")


def cause(failure: ClientFailure) -> tuple[str, str]:
    """Return a failure's error without its module, and its message without the client and round it begins with.

    Failures of several clients, or rounds, with one cause are then the same.
    """
    own = f"client {failure.client}"
    for start in (f"{own}, round {failure.round}: ", f"{own}: "):
        if failure.message.startswith(start):
            return failure.error.rpartition(".")[2], failure.message[len(start) :]
    return failure.error.rpartition(".")[2], failure.message


def _measured(record: RoundRecord, held_out: bool) -> Mapping[str, float]:
    return (record.evaluation or {}) if held_out else record.metrics
