"""Texts as blocks of tokens, prepared once and mapped by every process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.records import Array, Info
from fedloom.workloads._data import cache
from fedloom.workloads._data.raw import existing, is_hidden, title_of
from fedloom.workloads._pretrained.folder import PretrainedFolder, quiet
from fedloom.workloads.causal_lm.config import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TARGET = -100
"""Label of a place without a token to predict: ignored by cross-entropy."""
_FORMAT = 2
_FEWEST = 2
"""Tokens of the shortest block: one to read, one to predict."""
_REMEDY = "Set workload.data.path to a UTF-8 text file or a folder of them, and workload.data.pattern to their names"

NamedFiles = list[tuple[str, Path]]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of one split."""

    ids: Array
    """Token ids, shape (n, block_size), int32; zeros behind the end of a shorter block."""
    lengths: Array
    """Tokens of each block, shape (n,), int64."""

    def batch(self, rows: Array) -> tuple[Array, Array]:
        """Return ids and labels of some blocks, cut to the longest of them; both (b, t), int64.

        A block is padded behind its end only, which no earlier token attends to, so any token id is valid there.
        """
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        ids = self.ids[rows, :longest].astype(np.int64)
        return ids, np.where(np.arange(longest) < lengths[:, None], ids, NO_TARGET)


@dataclass(frozen=True, slots=True)
class BlockData:
    """A corpus in a model's tokens."""

    train: Blocks
    test: Blocks
    files: Array
    """Number of the file of each training block, shape (n,), int64."""
    names: tuple[str, ...]
    """The training files, in order of their numbers."""
    info: Info
    """Source of the texts, for the run's provenance."""
    sha256: str
    """Digest of texts and preparation."""


def load_blocks(settings: Texts, model: PretrainedFolder, block_size: int) -> BlockData:
    """Return the texts in the model's tokens, from the cache if they are there.

    Raises:
        DataMissing: the texts are missing, empty or not UTF-8.
        ConfigError: the tokens are not the model's.
    """
    train = list_texts(settings.path, settings.pattern, "workload.data.path")
    test = list_texts(settings.test_path, settings.pattern, "workload.data.test_path") if settings.test_path else []
    digests = [cache.digest_of_files(files) for files in (train, test)]
    fraction = 0.0 if test else settings.test_fraction
    key = cache.digest_of([_FORMAT, digests, fraction, cache.digest_of_files(model.tokenizer_files), block_size])

    def build(folder: Path) -> None:
        with quiet():  # a text longer than the model's context is cut afterwards
            tokenizer = model.tokenizer()
            tokens = [[_tokens(tokenizer, path) for _, path in files] for files in (train, test)]
        parts = [_cut(each, block_size, fraction) for each in tokens[0]]
        held_out = [_cut(each, block_size, 0.0)[0] for each in tokens[1]] or [rest for _, rest in parts]
        kept = [blocks for blocks, _ in parts]
        np.save(folder / "files.npy", np.repeat(np.arange(len(kept)), [len(blocks) for blocks in kept]))
        for split, blocks in (("train", kept), ("test", held_out)):
            _save(folder, split, [block for each in blocks for block in each], block_size)

    place = cache.entry("blocks", key, build)
    splits = [
        Blocks(*(np.asarray(cache.map_array(place / f"{split}_{what}.npy")) for what in ("ids", "lengths")))
        for split in ("train", "test")
    ]
    _check(splits, settings, model, block_size)
    info = {
        "name": title_of(settings, settings.path),
        "kind": settings.kind,
        "licence": settings.licence,
        "sha256": digests[0],
        "num_train": len(splits[0].lengths),
        "num_test": len(splits[1].lengths),
        "block_size": block_size,
    }
    names = tuple(name for name, _ in train)
    return BlockData(splits[0], splits[1], np.load(place / "files.npy"), names, info, key)


def list_texts(where: str, pattern: str, setting: str) -> NamedFiles:
    """Return a text file, or those below a folder, in sorted order.

    Raises:
        DataMissing: there is no such file.
    """
    root = existing(where, setting, _REMEDY)
    if root.is_file():
        return [(root.name, root)]
    below = (path for path in sorted(root.rglob(pattern)) if path.is_file())
    found = [path for path in below if not is_hidden(path.relative_to(root))]
    if not found:
        raise DataMissing(f"{setting}: no file below {str(root)!r} matches the pattern {pattern!r}. {_REMEDY}")
    return [(str(path.relative_to(root)), path) for path in found]


def _tokens(tokenizer: PreTrainedTokenizerBase, path: Path) -> Array:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataMissing(f"{path}: not a text in UTF-8 ({exc.reason} at byte {exc.start}). {_REMEDY}") from exc
    tokens = np.asarray(tokenizer(text)["input_ids"], np.int32) if text.strip() else np.zeros(0, np.int32)
    if len(tokens) < _FEWEST:
        raise DataMissing(
            f"{path}: no text for training ({len(tokens)} tokens, at least {_FEWEST} are needed). Remove the file, or "
            "exclude it with workload.data.pattern"
        )
    return tokens


def _cut(tokens: Array, block_size: int, fraction: float) -> tuple[list[Array], list[Array]]:
    """Return a file's training blocks, and the held-out ones at its end; the first is never held out."""
    blocks = [tokens[start : start + block_size] for start in range(0, len(tokens), block_size)]
    blocks = blocks if len(blocks[-1]) >= _FEWEST else blocks[:-1]
    kept = len(blocks) - min(round(len(blocks) * fraction), len(blocks) - 1)
    return blocks[:kept], blocks[kept:]


def _save(folder: Path, split: str, blocks: list[Array], block_size: int) -> None:
    ids = np.zeros((len(blocks), block_size), np.int32)
    for row, block in zip(ids, blocks, strict=True):
        row[: len(block)] = block
    np.save(folder / f"{split}_ids.npy", ids)
    np.save(folder / f"{split}_lengths.npy", np.array([len(block) for block in blocks], np.int64))


def _check(splits: list[Blocks], settings: Texts, model: PretrainedFolder, block_size: int) -> None:
    if not len(splits[1].lengths):
        raise DataMissing(
            f"workload.data: {len(splits[0].lengths)} blocks of {block_size} tokens leave none to hold out with "
            f"test_fraction = {settings.test_fraction:g}. Set a smaller workload.model.block_size, a larger "
            "test_fraction, or workload.data.test_path"
        )
    known = model.config.get("vocab_size")
    largest = max(int(split.ids.max()) for split in splits)
    if known is not None and largest >= known:
        raise ConfigError(
            f"workload.model.checkpoint: the tokenizer of {str(model.path)!r} makes token {largest}, but the model "
            f"knows tokens 0 to {known - 1}. Are tokenizer and weights of the same model?"
        )
