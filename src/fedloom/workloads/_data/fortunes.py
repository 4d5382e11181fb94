"""Texts of Debian's package `fortunes`: one file for each topic, texts divided by lines with a `%`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.workloads._data.raw import RawData
from fedloom.workloads._data.text_settings import Fortunes

INSTALL_FORTUNES = "apt-get install fortunes"
_DIVIDER = re.compile(r"^%\n", re.MULTILINE)
_SPACE = re.compile(r"\s+")
_LEAST = 10
"""Minimum number of texts of a topic."""


def fortunes_files(settings: Fortunes) -> list[tuple[str, Path]]:
    """Return one file for each topic.

    Raises:
        DataMissing: a topic's file is missing; the message says how to get it.
    """
    folder = Path(settings.folder).expanduser()
    missing = [topic for topic in settings.topics if not (folder / topic).is_file()]
    if missing:
        raise DataMissing(
            f"workload.data.topics: no files {', '.join(missing)} in {str(folder)!r}. Run: {INSTALL_FORTUNES}   Or set "
            "workload.data.folder to where the package is unpacked (its usr/share/games/fortunes)"
        )
    return [(topic, folder / topic) for topic in sorted(settings.topics)]


def read_fortunes(settings: Fortunes, files: list[tuple[str, Path]]) -> RawData[list[str]]:
    """Return texts with their topic as class; white space is one blank each."""
    texts: list[str] = []
    labels: list[int] = []
    for label, (topic, path) in enumerate(files):
        found = _texts(path)
        if len(found) < _LEAST:
            raise DataMissing(f"{path}: {len(found)} texts, expected at least {_LEAST} for the topic {topic!r}")
        texts += found
        labels += [label] * len(found)
    classes = np.array(labels, np.int64)
    return RawData(
        x_train=texts,
        y_train=classes,
        test_fraction=settings.test_fraction,
        where=str(Path(settings.folder)),
        label_names=tuple(topic for topic, _ in files),
        title="fortunes by topic (Debian)",
        kind="real",
        licence="BSD (collection); the words are their authors'",
    )


def _texts(path: Path) -> list[str]:
    """Return the file's texts without empty ones and repetitions, in order."""
    parts = _DIVIDER.split(path.read_text(encoding="utf-8", errors="replace"))
    return list(dict.fromkeys(text for part in parts if (text := _SPACE.sub(" ", part).strip())))
