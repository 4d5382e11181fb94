"""Missing updates, by cause."""

from __future__ import annotations

from collections import defaultdict

from fedloom.core.records import ClientFailure
from fedloom.reporting.lines import cause
from fedloom.reporting.markup import Markup, printable, table, tag
from fedloom.reporting.page import collapsible, section
from fedloom.reporting.quantities import bytes_text
from fedloom.reporting.run_folder import RunFolder

_MOST_CAUSES = 40
_MOST_NAMED = 12


def failures(run: RunFolder) -> Markup:
    """Return a table of causes, with an example of each; notices of the run below."""
    causes: dict[tuple[str, str, str], list[ClientFailure]] = defaultdict(list)
    for failure in run.failures:
        error, message = cause(failure)
        causes[failure.stage, error, _first_line(message)].append(failure)
    ranked = sorted(causes.items(), key=lambda item: (-len(item[1]), item[0]))
    return section("Missing updates", *(_found(ranked) if ranked else [_none(run)]), _notices(run))


def _found(ranked: list[tuple[tuple[str, str, str], list[ClientFailure]]]) -> list[Markup]:
    rows = [
        (
            f"{error}: {message}",
            stage,
            _named({each.client for each in found}),
            _named({each.round for each in found}),
            f"{len(found):,}",
        )
        for (stage, error, message), found in ranked[:_MOST_CAUSES]
    ]
    parts = [
        table(
            ("cause", "stage", "clients", "rounds", "times"), rows, caption="By cause, the most frequent first", text=4
        )
    ]
    examples = [
        collapsible(f"{error} in {stage}: one of {len(found):,}", tag("pre", printable(_described(found[0]))))
        for (stage, error, _), found in ranked[:_MOST_CAUSES]
    ]
    if len(ranked) > _MOST_CAUSES:
        parts.append(tag("p", f"{len(ranked) - _MOST_CAUSES} more causes are in rounds.jsonl.", class_="note"))
    return parts + examples


def _described(failure: ClientFailure) -> str:
    where = f" on {failure.node}" if failure.node else ""
    spent = f"{failure.seconds:.2f} s" + (f" and {bytes_text(failure.bytes_down)} read" if failure.bytes_down else "")
    head = f"client {failure.client}, round {failure.round}, stage {failure.stage}{where}, after {spent}"
    return f"{head}\n{failure.error}: {failure.message}\n{failure.traceback}".rstrip()


def _none(run: RunFolder) -> Markup:
    answers = sum(len(record.cohort) for record in run.rounds)
    return tag("p", f"No missing updates: all {answers:,} arrived." if answers else "None so far.")


def _notices(run: RunFolder) -> Markup | None:
    notices = [str(event.get("message", "")) for event in run.events if event.get("event") == "Notice"]
    return (
        collapsible(f"Notices of the run ({len(notices)})", tag("ul", [tag("li", each) for each in notices]))
        if notices
        else None
    )


def _named(numbers: set[int]) -> str:
    ordered = sorted(numbers)
    shown = ", ".join(map(str, ordered[:_MOST_NAMED]))
    return shown if len(ordered) <= _MOST_NAMED else f"{shown} and {len(ordered) - _MOST_NAMED:,} more"


def _first_line(message: str) -> str:
    line = message.strip().split("\n")[0]
    return line if len(line) <= 300 else f"{line[:299]}…"
