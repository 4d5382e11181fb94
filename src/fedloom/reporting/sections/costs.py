"""Costs of the run: bytes in each direction, time by kind of work, the share of each node."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from fedloom.core.history import NodeShare, RoundRecord
from fedloom.reporting.charts import Series, bar_chart, line_chart
from fedloom.reporting.markup import Markup, table, tag
from fedloom.reporting.page import section
from fedloom.reporting.quantities import byte_unit, bytes_text, plural, seconds_text, share_text
from fedloom.reporting.run_folder import RunFolder

_MOST_NODES = 60


def traffic(run: RunFolder) -> Markup:
    """Return the section about bytes up and down, per round and in total."""
    total = run.traffic
    if not run.rounds:
        return section("Traffic", tag("p", "Nothing was sent yet.", class_="empty"))
    rows = [
        ("up, from clients", bytes_text(total.bytes_up), f"{total.params_up:,}", bytes_text(total.wire_bytes_up)),
        ("down, to clients", bytes_text(total.bytes_down), f"{total.params_down:,}", bytes_text(total.wire_bytes_down)),
    ]
    return section(
        "Traffic",
        tag(
            "p",
            "“Clients” counts what every client would read and send alone on its own device. “Wire” counts what "
            "crossed between the server and its agents in this run, where clients of a group share one message.",
        ),
        tag("div", _per_round(run.rounds), _so_far(run.rounds), class_="charts"),
        table(("direction", "clients, bytes", "clients, values", "wire, bytes"), rows, caption="All rounds together"),
    )


def time(run: RunFolder) -> Markup:
    """Return the section about time."""
    if not run.rounds:
        return section("Time", tag("p", "No round has ended yet.", class_="empty"))
    layers = _time_layers(run.rounds)
    whole = sum(record.timing.total_s for record in run.rounds)
    rows = [(name, seconds_text(sum(v)), share_text(sum(v), whole)) for name, v in layers.items()]
    rows.append(("all rounds", seconds_text(whole), share_text(whole, whole)))
    first = run.rounds[0].round
    return section(
        "Time",
        tag(
            "div",
            bar_chart("Server time per round", layers, x_label="round", first=first),
            _clients(run.rounds),
            class_="charts",
        ),
        table(("server activity", "wall clock", "share"), rows, caption="Server time by activity"),
        tag("p", _busy(run), class_="note"),
    )


def nodes(run: RunFolder) -> Markup:
    """Return the section about each agent's work."""
    shares = _node_totals(run.rounds)
    busy = sum(share.busy_s for share in shares.values())
    ranked = sorted(shares.items(), key=lambda item: -item[1].busy_s)
    rows = [
        (
            name,
            f"{share.jobs:,}",
            seconds_text(share.busy_s),
            share_text(share.busy_s, busy),
            bytes_text(share.wire_bytes_up),
            bytes_text(share.wire_bytes_down),
        )
        for name, share in ranked[:_MOST_NODES]
    ]
    moved = sum(record.reassigned for record in run.rounds)
    stale, twice = sum(record.stale for record in run.rounds), sum(record.duplicates for record in run.rounds)
    restored = sum(record.restored for record in run.rounds)
    survived = f" Results restored after a restart of the server: {restored:,}." if restored else ""
    left_out = f" The {len(ranked) - _MOST_NODES} least busy are omitted." if len(ranked) > _MOST_NODES else ""
    return section(
        "Nodes",
        table(("node", "jobs", "busy", "share", "up", "down"), rows, caption="Agents, the busiest first")
        if rows
        else tag("p", "The run has no data about its agents.", class_="empty"),
        tag(
            "p",
            f"Reassigned groups: {moved:,}. Late results: {stale:,}, duplicates: {twice:,} "
            f"(never aggregated).{survived}{left_out}",
            class_="note",
        ),
    )


def _per_round(rounds: Sequence[RoundRecord]) -> Markup:
    divisor, unit = byte_unit(max(record.traffic.bytes_up + record.traffic.bytes_down for record in rounds))
    layers = {
        "up": [record.traffic.bytes_up / divisor for record in rounds],
        "down": [record.traffic.bytes_down / divisor for record in rounds],
    }
    return bar_chart(f"{unit} per round, all clients", layers, x_label="round", first=rounds[0].round)


def _so_far(rounds: Sequence[RoundRecord]) -> Markup:
    kinds = {"up": "bytes_up", "down": "bytes_down", "wire, up": "wire_bytes_up", "wire, down": "wire_bytes_down"}
    sums = {
        label: list(itertools.accumulate(getattr(record.traffic, field) for record in rounds))
        for label, field in kinds.items()
    }
    divisor, unit = byte_unit(max(values[-1] for values in sums.values()))
    lines = [
        Series(label=label, x=[record.round for record in rounds], y=[v / divisor for v in values], color=color)
        for color, (label, values) in enumerate(sums.items())
        if values[-1]
    ]
    return line_chart(f"{unit} sent so far", lines, x_label="round", x_whole=True, from_zero=True)


def _time_layers(rounds: Sequence[RoundRecord]) -> dict[str, list[float]]:
    times = [record.timing for record in rounds]
    known = {
        "waiting for clients": [t.waiting_s for t in times],
        "aggregating": [t.aggregation_s for t in times],
        "evaluating": [t.evaluation_s for t in times],
        "waiting for a checkpoint": [t.checkpoint_s for t in times],
    }
    rest = [max(0.0, t.total_s - sum(parts)) for t, *parts in zip(times, *known.values(), strict=True)]
    return {**known, "other": rest}


def _clients(rounds: Sequence[RoundRecord]) -> Markup:
    """Return the seconds of the median and the slowest client: stragglers."""
    timed = [(record.round, list(record.client_seconds.values())) for record in rounds if record.client_seconds]
    x = [float(number) for number, _ in timed]
    lines = [
        Series(label="median client", x=x, y=[float(np.median(seconds)) for _, seconds in timed], color=0),
        Series(label="slowest client", x=x, y=[max(seconds) for _, seconds in timed], color=1),
    ]
    return line_chart("Client training time, seconds", lines, x_label="round", x_whole=True, from_zero=True)


def _busy(run: RunFolder) -> str:
    training = sum(record.timing.training_s for record in run.rounds)
    whole = sum(record.timing.total_s for record in run.rounds)
    sentence = f"Client work took {seconds_text(training)} in all"
    if run.summary is None or run.summary.workers < 1:
        return sentence + "."
    capacity = whole * run.summary.workers
    return f"{sentence}: {share_text(training, capacity)} of the time of {plural(run.summary.workers, 'worker')}."


def _node_totals(rounds: Sequence[RoundRecord]) -> dict[str, NodeShare]:
    totals: dict[str, NodeShare] = {}
    for record in rounds:
        for name, share in record.nodes.items():
            so_far = totals.get(name, NodeShare())
            totals[name] = NodeShare(
                **{field: getattr(so_far, field) + getattr(share, field) for field in NodeShare.model_fields}
            )
    return totals
