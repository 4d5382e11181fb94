"""Utterances of a source as padded samples and symbols, made once and mapped by every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.extras import needed_by
from fedloom.core.records import Array, Info
from fedloom.core.seeds import generator
from fedloom.workloads._data import cache
from fedloom.workloads.hubert_ee import espeak, flite
from fedloom.workloads.hubert_ee.config import RATE, LibriSpeech, SpeechSource, Synthetic
from fedloom.workloads.hubert_ee.vocabulary import encode
from fedloom.workloads.hubert_ee.words import WORDS

_FORMAT = 3
_SHORTEST = 0.1
"""Seconds below which audio is no utterance."""


Sides: TypeAlias = Mapping[str, Callable[[], Iterator["Utterance"]]]
"""What makes the utterances of each split."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording."""

    samples: Array
    """(n,), float32 from -1 to 1, `RATE` per second."""
    text: str
    speaker: str
    noise_db: float
    """Ratio of speech to added noise, dB; NaN if nothing was added."""
    where: str
    """File or number, for messages."""


@dataclass(frozen=True, slots=True)
class Split:
    """Utterances as arrays."""

    waves: Array
    """(n, longest), int16, zeros behind the end."""
    lengths: Array
    """Samples of each, (n,), int64."""
    targets: Array
    """(n, 1 + longest), int64: the number of symbols, the symbols, zeros."""
    speakers: Array
    """Number of the speaker, (n,), int64; in each split from 0."""
    noise_db: Array
    """(n,), float64."""

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class Corpus:
    """The splits, and facts about them."""

    train: Split
    dev: Split | None
    """None if the source has none."""
    test: Split
    info: Info
    sha256: str


def load_corpus(settings: SpeechSource) -> Corpus:
    """Return the utterances of a source, from the cache if they are there.

    Synthetic speech is made once and stored: the synthesiser's samples differ from time to time, and with them their
    digest, which a run records.

    Raises:
        DataMissing: files are missing or are no speech, at another rate, or with characters outside the vocabulary.
        PackageMissing: the source needs a package that is not installed.
    """
    sides = _spoken(settings) if isinstance(settings, Synthetic) else _recorded(settings)
    files = [] if isinstance(settings, Synthetic) else _files_of(settings)
    audio = sorted((str(path), *_state_of(path)) for _, path in files for path in path.parent.glob("*.flac"))
    key = cache.digest_of([_FORMAT, settings.model_dump(mode="json"), cache.digest_of_files(files), audio])

    def build(folder: Path) -> None:
        for name, utterances in sides.items():
            _write(folder, name, list(utterances()))

    place = cache.entry("speech", key, build)
    train, test = _read(place, "train"), _read(place, "test")
    dev = _read(place, "dev") if "dev" in sides else None
    content = cache.digest_of_files([(path.name, path) for path in sorted(place.glob("*.npy"))])
    kind = "synthetic" if isinstance(settings, Synthetic) else "real"
    title = "eSpeak NG, common words" if isinstance(settings, Synthetic) else "LibriSpeech"
    info = {
        "name": title,
        "kind": kind,
        "licence": None if isinstance(settings, Synthetic) else "CC BY 4.0",
        "sha256": content,
        "num_train": len(train),
        "num_dev": 0 if dev is None else len(dev),
        "num_test": len(test),
        "seconds_train": round(float(train.lengths.sum()) / RATE, 1),
        "seconds_test": round(float(test.lengths.sum()) / RATE, 1),
        "speakers_train": int(train.speakers.max()) + 1,
        "speakers_test": int(test.speakers.max()) + 1,
    }
    return Corpus(train, dev, test, info, content)


def checked(samples: Array, rate: int, where: str) -> Array:
    """Return audio as one channel.

    Raises:
        DataMissing: another rate, too short, silent, or not finite; the message says what was found.
    """
    if rate != RATE:
        raise DataMissing(
            f"{where}: has {rate} samples per second, expected {RATE}. Convert it: sox IN -r {RATE} -c 1 OUT"
        )
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if len(mono) < _SHORTEST * RATE:
        raise DataMissing(f"{where}: has {len(mono) / RATE:.3f} s of audio, expected at least {_SHORTEST} s of speech")
    if not np.isfinite(mono).all() or not np.abs(mono).max() > 0:
        raise DataMissing(f"{where}: is silent or not finite, expected speech")
    return np.asarray(mono, np.float32)


def _spoken(settings: Synthetic) -> Sides:
    counts = {
        "train": settings.train_utterances,
        "dev": settings.dev_utterances,
        "test": settings.test_utterances,
    }
    return {name: partial(_said, settings, name, count) for name, count in counts.items()}


def _said(settings: Synthetic, name: str, count: int) -> Iterator[Utterance]:
    rng = generator(settings.seed, "hubert_ee", "speech", name)
    speakers = [voice.name for voice in espeak.voices(name, settings.accents)]
    if settings.flite:
        speakers += [f"{flite.PREFIX}{voice}" for voice in flite.VARIANTS[name] for _ in settings.accents]
    order = rng.permutation(len(speakers))  # so that a small split has voices of every kind
    least, most = settings.words
    lines = []
    for number in range(count):
        words = rng.choice(settings.vocabulary, int(rng.integers(least, most + 1)))
        text = " ".join(WORDS[word] for word in words)
        voice = speakers[order[number % len(speakers)]]
        lines.append(espeak.Line(text, voice, int(rng.integers(140, 190)), int(rng.integers(35, 65))))
    for number, line in enumerate(lines):
        by_flite = line.voice.startswith(flite.PREFIX)
        clean = flite.speak(line.text, line.voice, line.rate) if by_flite else espeak.speak(line)
        level = float(rng.choice(settings.noise_db))
        power = float((clean.astype(np.float64) ** 2).mean()) / 10 ** (level / 10)
        noisy = clean + rng.normal(0.0, np.sqrt(power), len(clean)).astype(np.float32)
        yield Utterance(noisy.clip(-1.0, 1.0), line.text, line.voice, level, f"utterance {number}")


def _folders(settings: LibriSpeech) -> dict[str, Path]:
    given = {"train": settings.train_folder, "dev": settings.dev_folder, "test": settings.test_folder}
    return {side: Path(folder).expanduser() for side, folder in given.items() if folder is not None}


def _files_of(settings: LibriSpeech) -> list[tuple[str, Path]]:
    found = []
    for side, root in _folders(settings).items():
        files = sorted(root.rglob("*.trans.txt"))
        if not files:
            raise DataMissing(
                f"workload.speech.{side}_folder: {str(root)!r} has no *.trans.txt; expected SPEAKER/CHAPTER/ with "
                ".flac files and their transcripts"
            )
        found += [(f"{side}/{path.relative_to(root)}", path) for path in files]
    return found


def _state_of(path: Path) -> tuple[int, int]:
    """Return a file's size and time: another recording in its place is read again."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _recorded(settings: LibriSpeech) -> Sides:
    return {side: partial(_read_folder, settings, root) for side, root in _folders(settings).items()}


def _read_folder(settings: LibriSpeech, root: Path) -> Iterator[Utterance]:
    with needed_by("workload.speech (source 'librispeech')"):
        import soundfile
    count = 0
    for transcript in sorted(root.rglob("*.trans.txt")):
        for line in transcript.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            path = transcript.parent / f"{name}.flac"
            try:
                samples, rate = soundfile.read(path, dtype="float32")
            except (soundfile.LibsndfileError, OSError) as exc:
                raise DataMissing(f"{path}: cannot be read as audio: {exc}") from exc
            samples = checked(samples, rate, str(path))
            if len(samples) > settings.max_seconds * RATE or count == settings.max_utterances:
                continue
            count += 1
            yield Utterance(samples, text, name.partition("-")[0], float("nan"), str(path))


def _write(folder: Path, side: str, utterances: list[Utterance]) -> None:
    if not utterances:
        raise DataMissing("workload.speech: no utterance is left; raise max_seconds or check the folder")
    symbols = [encode(each.text, each.where) for each in utterances]
    waves = np.zeros((len(utterances), max(len(each.samples) for each in utterances)), np.int16)
    targets = np.zeros((len(utterances), 1 + max(map(len, symbols))), np.int64)
    for row, (each, target) in enumerate(zip(utterances, symbols, strict=True)):
        waves[row, : len(each.samples)] = np.rint(each.samples * 32767.0)
        targets[row, : len(target) + 1] = [len(target), *target]
    speakers = sorted({each.speaker for each in utterances})
    np.save(folder / f"{side}_waves.npy", waves)
    np.save(folder / f"{side}_lengths.npy", np.array([len(each.samples) for each in utterances], np.int64))
    np.save(folder / f"{side}_targets.npy", targets)
    np.save(folder / f"{side}_speakers.npy", np.array([speakers.index(each.speaker) for each in utterances], np.int64))
    np.save(folder / f"{side}_noise_db.npy", np.array([each.noise_db for each in utterances]))


def _read(folder: Path, side: str) -> Split:
    names = ("waves", "lengths", "targets", "speakers", "noise_db")
    return Split(*(np.asarray(cache.map_array(folder / f"{side}_{name}.npy")) for name in names))
