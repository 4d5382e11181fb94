"""Sites: the global model on the validation data of each, after the last evaluated round."""

from __future__ import annotations

from fedloom.core.records import JsonObject
from fedloom.reporting.markup import Markup, table, tag
from fedloom.reporting.page import section
from fedloom.reporting.quantities import NOTHING, metric_text
from fedloom.reporting.run_folder import RunFolder

SECTION = "sites"
"""Section of a round's record with the evaluation of each site."""


def sites(run: RunFolder) -> Markup | None:
    """Return a table of the sites' metrics; None if clients are no sites, or nothing was evaluated."""
    found = [(record.round, record.sections[SECTION]) for record in run.rounds if SECTION in record.sections]
    if not found:
        return None
    round_number, last = found[-1]
    names = sorted({name for site in last["sites"] for name in site["metrics"]})
    return section(
        "Sites",
        tag(
            "p",
            f"The global model after round {round_number} on each site's own validation data. The 10th percentile is "
            "the value that 90 % of the sites reach.",
        ),
        table(
            ["site", *names],
            [*_rows(last, names), *_missing(last, names), *_summary(last, names)],
            caption="Metrics of each site",
        ),
    )


def _rows(last: JsonObject, names: list[str]) -> list[list[str]]:
    return [[site["site"], *(_text(site["metrics"].get(name)) for name in names)] for site in last["sites"]]


def _missing(last: JsonObject, names: list[str]) -> list[list[str]]:
    return [
        [f"{site} (not evaluated: {reason})", *(NOTHING for _ in names)] for site, reason in last["missing"].items()
    ]


def _summary(last: JsonObject, names: list[str]) -> list[list[str]]:
    worst = [last["worst"].get(name) for name in names]
    return [
        ["worst site", *(NOTHING if one is None else f"{metric_text(one['value'])} ({one['site']})" for one in worst)],
        ["10th percentile", *(_text(last["p10"].get(name)) for name in names)],
    ]


def _text(value: float | None) -> str:
    return NOTHING if value is None else metric_text(value)
