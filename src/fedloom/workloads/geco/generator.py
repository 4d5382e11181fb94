"""Our own sentence pairs: a small grammar with words that come in two versions."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pydantic

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.seeds import generator
from fedloom.core.text import did_you_mean
from fedloom.workloads._data import cache
from fedloom.workloads.geco.config import ATTRIBUTES, Generated
from fedloom.workloads.geco.sentences import Corpus, Sentence, differing

T = TypeVar("T")
_FOLDER = Path(__file__).parent / "attributes"
_HOLE = re.compile(r"\{([^{}]*)\}")
_TRIES = 50
"""Draws per sentence that is wanted before a grammar counts as too small."""


class Attribute(Settings):
    """A grammar of sentences whose versions differ in an attribute: the content of a file in `attributes`."""

    versions: tuple[str, str]
    """Names of the two versions."""
    subject: str
    """The role whose words differ in both schemes, such as `S`; those of others differ in the scheme `all` only."""
    patterns: tuple[str, ...]
    """Sentences, words apart by spaces, with holes in braces."""
    words: Mapping[str, tuple[tuple[str, str], ...]]
    """For each kind, pairs of words, one for each version: what `{ROLE.kind}` stands for."""
    plain: Mapping[str, tuple[str, ...]] = {}
    """Words that are the same in all versions: what `{name}` stands for."""
    fragments: Mapping[str, tuple[str, ...]] = {}
    """Parts of sentences, with holes: what `{name}` stands for."""

    @pydantic.model_validator(mode="after")
    def _closed(self) -> Attribute:
        for text in (*self.patterns, *(each for texts in self.fragments.values() for each in texts)):
            for hole in _HOLE.findall(text):
                kind = hole.partition(".")[2]
                if not (kind in self.words if "." in hole else hole in self.plain or hole in self.fragments):
                    raise ConfigError(f"{text!r}: {{{hole}}} is neither a kind of [words] nor a name of the file")
        for kind, pairs in self.words.items():
            for pair in pairs:
                if len(set(pair)) < 2 or any(len(word.split()) != 1 for word in pair):
                    raise ConfigError(f"words.{kind}: expected pairs of two different single words, got {list(pair)}")
        if not self.patterns:
            raise ConfigError("patterns: expected at least one sentence, got none")
        return self

    @property
    def lexicon(self) -> tuple[str, ...]:
        """Return every word a sentence can have, as it is and with a capital, sorted."""
        found = {word for pairs in self.words.values() for pair in pairs for word in pair}
        texts = [*self.patterns, *(each for texts in self.fragments.values() for each in texts)]
        found |= {word for words in self.plain.values() for word in words}
        found |= {word for text in texts for word in _HOLE.sub(" ", text).split()}
        return tuple(sorted(found | {_capital(word) for word in found}))


@dataclass(frozen=True, slots=True)
class _Slot:
    """A word of some role, in both versions."""

    role: str
    pair: tuple[str, str]


def load_attribute(name: str) -> Attribute:
    """Return an attribute's grammar: a packaged one by name, or a TOML file.

    Raises:
        ConfigError: no such attribute; the message names the packaged ones.
        DataMissing: the file is missing or invalid.
    """
    path = _FOLDER / f"{name}.toml" if name in ATTRIBUTES else Path(name).expanduser()
    if not path.is_file():
        if "/" in name or name.endswith(".toml"):
            raise DataMissing(f"workload.data.attribute: no file {name!r} (looked from {Path.cwd()})")
        raise ConfigError(
            f"workload.data.attribute: unknown attribute {name!r}; {did_you_mean(name, ATTRIBUTES)}packaged: "
            f"{', '.join(sorted(ATTRIBUTES))}. Or give the path of a TOML file with a grammar of your own"
        )
    try:
        return Attribute.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ConfigError, ValueError) as exc:
        raise DataMissing(f"{path}: not an attribute's grammar: {exc}") from exc


def generate(settings: Generated, seed: int) -> Corpus:
    """Draw sentence pairs; the same seed gives the same ones on every machine.

    Raises:
        ConfigError: unknown attribute, or its grammar has too few different sentences.
        DataMissing: an attribute's file is missing or invalid, or gives sentences without a word that differs.
    """
    attribute = load_attribute(settings.attribute)
    rng = generator(seed, "geco", "sentences")
    wanted = settings.pairs + settings.test_pairs
    sentences: list[Sentence] = []
    seen = set[tuple[str, ...]]()
    for _ in range(_TRIES * wanted):
        if len(sentences) == 2 * wanted:
            break
        versions = _draw(attribute, settings.altered, rng)
        if versions[0] in seen:
            continue
        seen.add(versions[0])
        mask, pair = differing(versions), len(sentences) // 2
        if not any(mask):
            raise DataMissing(
                f"workload.data.attribute {settings.attribute!r} gives the sentence {' '.join(versions[0])!r}, in "
                f"which no word differs between the versions; use a word of the role {attribute.subject!r} in each"
            )
        sentences += [Sentence(words, mask, version, pair) for version, words in enumerate(versions)]
    if len(sentences) < 2 * wanted:
        raise ConfigError(
            f"workload.data: {wanted} different sentences are wanted (pairs + test_pairs), but the grammar of "
            f"{settings.attribute!r} gave {len(sentences) // 2} in {_TRIES * wanted} draws; ask for fewer"
        )
    info: Mapping[str, object] = {
        "name": f"generated sentence pairs ({Path(settings.attribute).stem}, {settings.altered})",
        "kind": "synthetic",
        "licence": "Apache-2.0",
    }
    digest = cache.digest_of([[each.words, each.mask, each.version] for each in sentences])
    return Corpus(
        train=tuple(sentences[: 2 * settings.pairs]),
        test=tuple(sentences[2 * settings.pairs :]),
        versions=attribute.versions,
        info={**info, "sha256": digest},
        sha256=digest,
        lexicon=attribute.lexicon,
    )


def _draw(
    attribute: Attribute, scheme: Literal["all", "subject"], rng: np.random.Generator
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return one sentence in both versions."""
    pieces = list(_expand(attribute, _one_of(attribute.patterns, rng), rng, {}))
    others = {each.role: int(rng.integers(2)) for each in pieces if isinstance(each, _Slot)}
    made = []
    for version in (0, 1):
        words = []
        for piece in pieces:
            if isinstance(piece, str):
                words.append(piece)
            else:
                fixed = scheme == "subject" and piece.role != attribute.subject
                words.append(piece.pair[others[piece.role] if fixed else version])
        made.append((_capital(words[0]), *words[1:]))
    return made[0], made[1]


def _expand(
    attribute: Attribute, text: str, rng: np.random.Generator, drawn: dict[str, set[str]]
) -> Iterator[str | _Slot]:
    """Yield a text's words, holes filled; a plain word is not drawn twice in a sentence while others are left."""
    for word in re.sub(r"(\{[^{}]*\})", r" \1 ", text).split():
        hole = _HOLE.fullmatch(word)
        if hole is None:
            yield word
            continue
        role, _, kind = hole[1].rpartition(".")
        if role:
            yield _Slot(role, _one_of(attribute.words[kind], rng))
        elif kind in attribute.plain:
            used = drawn.setdefault(kind, set())
            left = tuple(each for each in attribute.plain[kind] if each not in used) or attribute.plain[kind]
            chosen = _one_of(left, rng)
            used.add(chosen)
            yield chosen
        else:
            yield from _expand(attribute, _one_of(attribute.fragments[kind], rng), rng, drawn)


def _one_of(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]
