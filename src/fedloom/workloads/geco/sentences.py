"""Sentences in versions that differ only in the words that carry an attribute: the ground truth of an explanation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedloom.core.errors import DataMissing
from fedloom.core.records import Info


@dataclass(frozen=True, slots=True)
class Sentence:
    """One version of a sentence of n words."""

    words: tuple[str, ...]
    mask: tuple[bool, ...]
    """Whether each word differs between the versions, n entries: the only words associated with the label."""
    version: int
    """Which version it is, from 0; the label."""
    pair: int
    """Number that the versions of a sentence share."""

    @property
    def chance(self) -> float:
        """Return |mask| / n, the expected mass accuracy of a random explanation."""
        return sum(self.mask) / len(self.words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Training and test sentences; no pair is in both."""

    train: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    versions: tuple[str, ...]
    """Names of the versions, such as `female` and `male`."""
    info: Info
    """Source of the sentences, as in `WorkloadInfo.data`."""
    sha256: str
    """Digest of all sentences."""
    lexicon: tuple[str, ...] = ()
    """All words that sentences of this source may have; empty if there is no end of them."""


def differing(versions: Sequence[Sequence[str]]) -> tuple[bool, ...]:
    """Return for each position whether the versions' words differ.

    Raises:
        ValueError: the versions have different lengths.
    """
    return tuple(len(set(words)) > 1 for words in zip(*versions, strict=True))


def by_pair(sentences: Iterable[Sentence]) -> Mapping[int, list[Sentence]]:
    """Return the sentences of each pair, in order."""
    found: dict[int, list[Sentence]] = defaultdict(list)
    for sentence in sentences:
        found[sentence.pair].append(sentence)
    return found


def check_pairs(sentences: Sequence[Sentence], versions: int, where: str) -> None:
    """Reject sentences that are no aligned versions with their differences as mask.

    Raises:
        DataMissing: the message names the pair and its fault.
    """
    for pair, members in by_pair(sentences).items():
        found = sorted(each.version for each in members)
        if found != list(range(versions)):
            raise DataMissing(
                f"{where}: sentence_idx {pair} has targets {found}, expected each of 0 to {versions - 1} once"
            )
        lengths = sorted({len(each.words) for each in members})
        if len(lengths) > 1:
            raise DataMissing(f"{where}: the versions of sentence_idx {pair} have {lengths} words, expected one length")
        mask = differing([each.words for each in members])
        if any(each.mask != mask for each in members):
            places = [place for place, differs in enumerate(mask) if differs]
            raise DataMissing(
                f"{where}: sentence_idx {pair}: ground_truth is not 1 where the versions differ, which is at {places}"
            )
    if not any(any(each.mask) for each in sentences):
        raise DataMissing(
            f"{where}: no sentence has a word that differs between its versions, so that no explanation can be scored"
        )
