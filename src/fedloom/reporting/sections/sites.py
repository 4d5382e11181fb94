"""Reports the global model's metrics on each client: sites, after local training too, or virtual clients."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.core.records import JsonObject
from fedloom.reporting.markup import Markup, table, tag
from fedloom.reporting.page import collapsible, section
from fedloom.reporting.quantities import NOTHING, metric_text
from fedloom.reporting.run_folder import RunFolder

SECTION, FINE_TUNED, CROSS_SITES = "sites", "sites_fine_tuned", "cross_sites"
"""Sections of a round's record: the evaluation of each site, that after local training, and the matrix of models."""
ON_CLIENTS = "on_clients"
"""Section of a round's record: the evaluation on each virtual client's own data."""
_MOST_CLIENTS = 200


def sites(run: RunFolder) -> Markup | None:
    """Return tables of the sites' metrics; None if clients are no sites, or nothing was evaluated."""
    found = [(record.round, record.sections) for record in run.rounds if SECTION in record.sections]
    if not found:
        return None
    round_number, sections = found[-1]
    parts = [
        tag(
            "p",
            f"The global model after round {round_number} on each site's own validation data. The 10th percentile is "
            "the value that 90 % of the sites reach; the spread is the standard deviation over the sites.",
        ),
        _of_model(sections[SECTION], sections.get(FINE_TUNED)),
    ]
    if CROSS_SITES in sections:
        intro = "Each column is a model: the global one, or that after local training at one site. Sites share theirs "
        parts += [tag("p", f"{intro}only where their policy says so."), *_matrices(sections[CROSS_SITES])]
    return section("Sites", *parts)


def client_metrics(run: RunFolder) -> Markup | None:
    """Return a table of the virtual clients' metrics; None if they were not evaluated."""
    found = [(record.round, record.sections[ON_CLIENTS]) for record in run.rounds if ON_CLIENTS in record.sections]
    if not found:
        return None
    round_number, last = found[-1]
    names = sorted({name for client in last["sites"] for name in client["metrics"]})
    columns = [(last, name) for name in names]
    rows = [*_rows(last, columns), *_missing(last, len(columns))]
    left_out = len(rows) - _MOST_CLIENTS
    return section(
        "Clients",
        tag(
            "p",
            f"The global model after round {round_number} on each client's own data. The 10th percentile is the value "
            "that 90 % of the clients reach; the spread is the standard deviation over the clients.",
        ),
        table(["", *names], _summary(columns, "client"), caption="Over all clients"),
        collapsible("Metrics of each client", table(["client", *names], rows[:_MOST_CLIENTS], caption="Each client")),
        tag("p", f"{left_out:,} more clients are in rounds.jsonl.", class_="note") if left_out > 0 else None,
    )


def _of_model(last: JsonObject, tuned: JsonObject | None) -> Markup:
    names = sorted({name for site in last["sites"] for name in site["metrics"]})
    columns = [(last, name) for name in names]
    heads = list(names)
    if tuned is not None:
        columns += [(tuned, name) for name in names]
        heads += [f"{name} after {tuned['times']} local training{'s' * (tuned['times'] > 1)}" for name in names]
    rows = [*_rows(last, columns), *_missing(last, len(columns)), *_summary(columns, "site")]
    return table(["site", *heads], rows, caption="Metrics of each site")


def _rows(last: JsonObject, columns: Sequence[tuple[JsonObject, str]]) -> list[list[str]]:
    return [[site["site"], *(_value(part, name, site["client"]) for part, name in columns)] for site in last["sites"]]


def _value(part: JsonObject, name: str, client: int) -> str:
    return _text(next((site["metrics"].get(name) for site in part["sites"] if site["client"] == client), None))


def _missing(last: JsonObject, columns: int) -> list[list[str]]:
    return [
        [f"{site} (not evaluated: {reason})", *(NOTHING for _ in range(columns))]
        for site, reason in last["missing"].items()
    ]


def _summary(columns: Sequence[tuple[JsonObject, str]], kind: str) -> list[list[str]]:
    worst = [part["worst"].get(name) for part, name in columns]
    return [
        [
            f"worst {kind}",
            *(NOTHING if one is None else f"{metric_text(one['value'])} ({one['site']})" for one in worst),
        ],
        ["10th percentile", *(_text(part["p10"].get(name)) for part, name in columns)],
        ["spread", *(_text(part.get("spread", {}).get(name)) for part, name in columns)],
    ]


def _matrices(found: JsonObject) -> list[Markup]:
    return [
        table(
            ["site", *found["models"]],
            [[site, *map(_cell, row)] for site, row in zip(found["sites"], rows, strict=True)],
            caption=f"{name} of each model (columns) at each site (rows)",
        )
        for name, rows in found["metrics"].items()
    ] + _reasons(found["reasons"])


def _reasons(found: JsonObject) -> list[Markup]:
    """List why models and sites have no number."""
    return [
        tag("p", f"n/a: {what} {name}: {why}.")
        for what, part in (("the model of", "models"), ("site", "sites"))
        for name, why in found[part].items()
    ]


def _cell(value: object) -> str:
    return metric_text(value) if isinstance(value, float | int) else str(value)


def _text(value: float | None) -> str:
    return NOTHING if value is None else metric_text(value)
