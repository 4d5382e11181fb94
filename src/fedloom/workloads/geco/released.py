"""The released sentence pairs, read from the folder they were unpacked to; nothing of them is part of fedloom."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.seeds import generator
from fedloom.workloads._data import cache
from fedloom.workloads._data.checked import reading
from fedloom.workloads._data.raw import existing
from fedloom.workloads.geco.config import Released
from fedloom.workloads.geco.sentences import Corpus, Sentence, by_pair, check_pairs

_FILES = ("train.jsonl", "test.jsonl")
_REMEDY = "Unpack a variant of the released data there (such as binary_gender_all): train.jsonl and test.jsonl"
_KEYS = ("sentence", "ground_truth", "gender", "target", "sentence_idx")


def read_released(settings: Released, seed: int) -> Corpus:
    """Read a folder with `train.jsonl` and `test.jsonl`, one record a line.

    Raises:
        DataMissing: a file is missing or broken; the message names file, line and fault.
        ConfigError: more pairs are wanted than there are.
    """
    folder = existing(settings.folder, "workload.data.folder", _REMEDY)
    paths = [existing(str(folder / name), "workload.data.folder", _REMEDY) for name in _FILES]
    names: dict[int, str] = {}
    with reading(str(folder)):
        train, test = ([*_read(path, names)] for path in paths)
        digest = cache.digest_of_files([(path.name, path) for path in paths])
    if sorted(names) != list(range(len(names))) or len(names) < 2:
        raise DataMissing(f"{folder}: the targets are {sorted(names)}, expected 0, 1, … of at least two versions")
    for path, sentences in zip(paths, (train, test), strict=True):
        check_pairs(sentences, len(names), str(path))
    shared = by_pair(train).keys() & by_pair(test).keys()
    if shared:
        raise DataMissing(f"{folder}: sentence_idx {min(shared)} is in both files; {len(shared)} are")
    chosen = [settings.pairs, settings.test_pairs, seed]
    return Corpus(
        train=_drawn(train, settings.pairs, seed, "pairs"),
        test=_drawn(test, settings.test_pairs, seed, "test_pairs"),
        versions=tuple(names[version] for version in range(len(names))),
        info={"name": f"GECO ({folder.name})", "kind": "real", "licence": "BSD-3-Clause", "sha256": digest},
        sha256=digest if chosen[:2] == [None, None] else cache.digest_of([digest, *chosen]),
    )


def _read(path: Path, names: dict[int, str]) -> Iterator[Sentence]:
    """Yield a file's sentences, and enter the names of their versions."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _sentence(line, f"{path}, line {number}", names)


def _sentence(line: str, where: str, names: dict[int, str]) -> Sentence:
    try:
        record = json.loads(line)
    except ValueError as exc:
        raise DataMissing(f"{where}: not a JSON record: {exc}") from exc
    if not isinstance(record, dict) or not set(_KEYS) <= record.keys():
        missing = [key for key in _KEYS if not isinstance(record, dict) or key not in record]
        raise DataMissing(f"{where}: expected a record with {', '.join(_KEYS)}; it has no {missing[0]!r}")
    words, mask, version, pair = (record[key] for key in ("sentence", "ground_truth", "target", "sentence_idx"))
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise DataMissing(f"{where}: sentence: expected a list of words, got {str(words)[:80]!r}")
    if not isinstance(mask, list) or len(mask) != len(words) or any(each not in (0, 1) for each in mask):
        raise DataMissing(
            f"{where}: ground_truth: expected 0 or 1 for each of {len(words)} words, got {str(mask)[:80]!r}"
        )
    if type(version) is not int or type(pair) is not int or version < 0:
        raise DataMissing(f"{where}: target and sentence_idx: expected integers, got {version!r} and {pair!r}")
    name = str(record["gender"])
    if names.setdefault(version, name) != name:
        raise DataMissing(f"{where}: target {version} is {name!r} here and {names[version]!r} above")
    return Sentence(tuple(words), tuple(map(bool, mask)), version, pair)


def _drawn(sentences: Sequence[Sentence], wanted: int | None, seed: int, setting: str) -> tuple[Sentence, ...]:
    """Return all versions of some pairs, drawn by the seed; of all if none are asked for."""
    pairs = by_pair(sentences)
    if wanted is None:
        return tuple(sentences)
    if wanted > len(pairs):
        raise ConfigError(f"workload.data.{setting}: {wanted} pairs are wanted, but the file has {len(pairs)}")
    numbers = np.array(list(pairs))
    drawn = generator(seed, "geco", setting).choice(len(numbers), wanted, replace=False)
    return tuple(each for place in np.sort(drawn) for each in pairs[int(numbers[place])])
