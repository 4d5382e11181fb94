"""Tokenised texts, prepared once and mapped by every process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.records import Array, Info
from fedloom.workloads._data import cache
from fedloom.workloads._data.checked import checked, reading
from fedloom.workloads._data.settings import Labelled
from fedloom.workloads._data.text_files import TEXT_SOURCES
from fedloom.workloads._data.text_settings import TextSource
from fedloom.workloads.text_classification.body import BodyFolder

_FORMAT = 2
_PLACES = ("file", "test_file", "dataset", "folder")


@dataclass(frozen=True, slots=True)
class TokenSplit:
    """Texts of one split: text i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: Array
    """Token ids of all texts, one after the other, int32."""
    offsets: Array
    """Shape (n + 1,), int64."""
    labels: Array
    """Classes, shape (n,), int64."""
    pad_id: int

    def batch(self, rows: Array) -> tuple[Array, Array]:
        """Return token ids and mask of some texts, padded to the longest of them; both (b, t), int64."""
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        lengths = ends - starts
        mask = (np.arange(int(lengths.max())) < lengths[:, None]).astype(np.int64)
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask == 1] = np.concatenate([self.ids[a:b] for a, b in zip(starts, ends, strict=True)])
        return ids, mask

    def lengths(self, rows: Array) -> Array:
        """Return the numbers of tokens of some texts, shape (b,)."""
        lengths: Array = self.offsets[rows + 1] - self.offsets[rows]
        return lengths


@dataclass(frozen=True, slots=True)
class TokenData:
    """A tokenised data set."""

    train: TokenSplit
    test: TokenSplit
    groups: Array | None
    """Group of each training text, (n,), int64."""
    info: Info
    """Provenance, as for images."""
    sha256: str
    """Digest of source and preparation."""


def load_tokens(settings: TextSource, body: BodyFolder, max_length: int) -> TokenData:
    """Return the texts of a source, in a body's tokens, from the cache if they are there.

    Raises:
        DataMissing: the source is missing on this machine, or invalid.
    """
    list_files, read = TEXT_SOURCES[type(settings)]
    with reading(f"workload.data (source {settings.source!r})"):
        files = list_files(settings)
        source_sha256 = cache.digest_of_files(files)
    chosen = {k: Path(v).name if k in _PLACES and v else v for k, v in settings.model_dump(mode="json").items()}
    key = cache.digest_of([_FORMAT, source_sha256, chosen, cache.digest_of_files(body.tokenizer_files), max_length])

    def build(folder: Path) -> None:
        with reading(str(files[0][1])):
            raw = checked(read(settings, files), settings if isinstance(settings, Labelled) else None)
        tokenizer = body.tokenizer()
        for split, texts, labels in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
            encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
            offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64)
            np.save(folder / f"{split}_ids.npy", np.concatenate(encoded).astype(np.int32))
            np.save(folder / f"{split}_offsets.npy", offsets)
            np.save(folder / f"{split}_labels.npy", labels)
        if raw.groups is not None:
            np.save(folder / "groups.npy", raw.groups)
        facts = {**raw.facts, "sha256": source_sha256, "pad_id": int(tokenizer.pad_token_id or 0)}
        cache.write_json(folder / "info.json", facts)

    place = cache.entry("tokens", key, build)
    info = cache.read_json(place / "info.json")
    pad_id = info.pop("pad_id")
    ids, offsets, labels = (
        [np.asarray(cache.map_array(place / f"{split}_{what}.npy")) for split in ("train", "test")]
        for what in ("ids", "offsets", "labels")
    )
    train, test = (TokenSplit(ids[side], offsets[side], labels[side], pad_id) for side in (0, 1))
    groups = place / "groups.npy"
    return TokenData(train, test, np.load(groups) if groups.is_file() else None, info, key)
