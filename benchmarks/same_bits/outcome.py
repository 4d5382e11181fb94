"""What a run produced, as far as it is compared, and how two runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Metrics = Mapping[str, float | None]
"""Metric's name -> value; None is a value that was not a number."""
SECTIONS = ("metrics", "evaluation", "info")
"""Keys of a round's record whose numbers are compared."""


@dataclass(frozen=True)
class Done:
    """A finished run: the digest of the final arrays, the final metrics, and each round's numbers in order."""

    model_sha256: str
    metrics: Metrics
    rounds: Sequence[Metrics]
    seconds: float
    """Wall-clock seconds of the whole process."""


@dataclass(frozen=True)
class NoData:
    """A run whose data is not on this machine."""

    message: str


@dataclass(frozen=True)
class Failed:
    """A run that did not finish for any other reason."""

    message: str


Outcome = Done | NoData | Failed


class StrangeSummary(Exception):
    """A run's summary or records are not in the documented form."""


def read_done(stdout: str, run_folder: Path, seconds: float) -> Done:
    """Read a finished run from the summary that ends its stdout, and from its `rounds.jsonl`.

    Raises:
        StrangeSummary: a documented key is missing or of another type; the message names it.
    """
    lines = stdout.strip().splitlines()
    if not lines:
        raise StrangeSummary("expected a summary in JSON as the last line of stdout, got nothing")
    summary = _object(lines[-1], "summary")
    if summary.get("status") != "done":
        raise StrangeSummary(f"summary: expected status 'done', got {summary.get('status')!r}")
    digest = summary.get("model_sha256")
    if not isinstance(digest, str):
        raise StrangeSummary(f"summary: expected model_sha256 as a string, got {digest!r}")
    metrics = _metrics(summary.get("metrics"), "summary: metrics")
    return Done(digest, metrics, tuple(_rounds(run_folder / "rounds.jsonl")), seconds)


def differences(base: Outcome, here: Outcome) -> list[str]:
    """Compare two outcomes exactly, NaN being equal to NaN; an empty list where they are equal.

    Returns:
        One line for each thing that differs: digest, final metrics, and the first round whose numbers differ.
    """
    if not isinstance(base, Done) or not isinstance(here, Done):
        return [] if base == here else [f"{_brief(base)} -> {_brief(here)}"]
    found = []
    if base.model_sha256 != here.model_sha256:
        found.append(f"model_sha256 {base.model_sha256[:12]} -> {here.model_sha256[:12]}")
    found += _metric_differences(base.metrics, here.metrics, "")
    if len(base.rounds) != len(here.rounds):
        return [*found, f"rounds {len(base.rounds)} -> {len(here.rounds)}"]
    for number, (left, right) in enumerate(zip(base.rounds, here.rounds, strict=True), 1):
        if lines := _metric_differences(left, right, f"round {number}: "):
            return [*found, *lines]
    return found


def encode(outcome: Done) -> str:
    """Write a finished run as JSON."""
    return json.dumps(
        {
            "model_sha256": outcome.model_sha256,
            "metrics": dict(outcome.metrics),
            "rounds": [dict(each) for each in outcome.rounds],
            "seconds": outcome.seconds,
        }
    )


def decode(text: str) -> Done:
    """Read what `encode` wrote.

    Raises:
        StrangeSummary: it is something else.
    """
    value = _object(text, "cached result")
    digest, rounds, seconds = value.get("model_sha256"), value.get("rounds"), value.get("seconds")
    if not isinstance(digest, str) or not isinstance(rounds, list) or not isinstance(seconds, float):
        raise StrangeSummary("cached result: expected model_sha256, rounds and seconds")
    metrics = _metrics(value.get("metrics"), "cached result: metrics")
    return Done(digest, metrics, tuple(_metrics(each, "cached result: rounds") for each in rounds), seconds)


def _metric_differences(base: Metrics, here: Metrics, where: str) -> list[str]:
    found = [f"{where}{name} is gone" for name in base if name not in here]
    found += [f"{where}{name} is new" for name in here if name not in base]
    for name in (each for each in base if each in here):
        left, right = base[name], here[name]
        if not _same(left, right):
            found.append(f"{where}{name} {left!r} -> {right!r}")
    return found


def _same(left: float | None, right: float | None) -> bool:
    """Tell whether two values are equal; every NaN and None (a NaN in JSON) are."""
    not_numbers = [each is None or each != each for each in (left, right)]
    return all(not_numbers) or left == right


def _brief(outcome: Outcome) -> str:
    if isinstance(outcome, Done):
        return f"done, model_sha256 {outcome.model_sha256[:12]}"
    return f"{'no data' if isinstance(outcome, NoData) else 'failed'}: {outcome.message}"


def _rounds(path: Path) -> Iterator[Metrics]:
    """The numbers of each round's record: metrics of training and evaluation, and the strategy's own."""
    if not path.is_file():
        raise StrangeSummary(f"expected the run's records in {path.name}, there is no such file")
    for line in path.read_text(encoding="utf-8").splitlines():
        record = _object(line, path.name)
        if not isinstance(record.get("metrics"), dict):
            raise StrangeSummary(f"{path.name}: expected metrics as an object, got {record.get('metrics')!r}")
        yield {name: value for section in SECTIONS for name, value in numbers(record.get(section), section)}


def numbers(value: object, path: str) -> Iterator[tuple[str, float | None]]:
    """Yield the numbers in a JSON value with their paths, such as `info.ranks.query`; measured seconds are left out."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not (str(name).endswith("_s") or "seconds" in str(name)):
                yield from numbers(each, f"{path}.{name}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from numbers(each, f"{path}[{index}]")
    elif value is None or isinstance(value, int | float):
        yield path, value


def _object(text: str, what: str) -> dict[str, object]:
    try:
        value: object = json.loads(text)
    except ValueError as exc:
        raise StrangeSummary(f"{what}: expected JSON, got {text[:80]!r}") from exc
    if not isinstance(value, dict):
        raise StrangeSummary(f"{what}: expected a JSON object, got {text[:80]!r}")
    return value


def _metrics(value: object, what: str) -> Metrics:
    if not isinstance(value, dict):
        raise StrangeSummary(f"{what}: expected an object of numbers, got {value!r}")
    found: dict[str, float | None] = {}
    for name, each in value.items():
        if each is not None and not isinstance(each, int | float):
            raise StrangeSummary(f"{what}: expected a number as {name}, got {each!r}")
        found[str(name)] = each
    return found
