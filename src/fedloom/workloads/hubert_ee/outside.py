"""Recordings of people from Debian's packages, as tests outside the domain of the training."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._base.rows import Batch
from fedloom.workloads.hubert_ee.config import RATE, OutsideSettings
from fedloom.workloads.hubert_ee.corpus import checked
from fedloom.workloads.hubert_ee.vocabulary import CHARACTERS, encode
from fedloom.workloads.hubert_ee.waves import read_wave

POCKETSPHINX = Path("/usr/share/pocketsphinx/test/data")
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ASTERISK_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
_INSTALL = {
    "pocketsphinx": "apt-get install pocketsphinx-testdata",
    "asterisk": "apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-wav",
}
_LINE = re.compile(r"<s>(.*)</s>\s*\(([^)]+)\)")


class Recordings:
    """Utterances of unlike lengths as rows; a minibatch is padded to its longest.

    Args:
        samples: of each, (n,), int16.
        symbols: of each transcript.
        device: of the work.
    """

    def __init__(self, samples: list[Array], symbols: list[list[int]], device: torch.device) -> None:
        self._samples, self._symbols, self._device = samples, symbols, device

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, rows: Tensor) -> Batch:
        """Return waves (b, longest) int16 and lengths (b,), and targets as in `corpus.Split`."""
        chosen = rows.tolist()
        lengths = torch.tensor([len(self._samples[row]) for row in chosen])
        waves = torch.zeros(len(chosen), int(lengths.max()), dtype=torch.int16)
        targets = torch.zeros(len(chosen), 1 + max(len(self._symbols[row]) for row in chosen), dtype=torch.int64)
        for place, row in enumerate(chosen):
            symbols = self._symbols[row]
            waves[place, : lengths[place]] = torch.from_numpy(self._samples[row])
            targets[place, : len(symbols) + 1] = torch.tensor([len(symbols), *symbols])
        return (waves.to(self._device), lengths.to(self._device)), targets.to(self._device)


def load_outside(settings: OutsideSettings, device: torch.device) -> dict[str, Recordings]:
    """Return the recordings of each source that the settings name.

    Raises:
        DataMissing: a package is not installed, or a file is no speech; the message has the command that installs it.
    """
    readers: Mapping[str, Callable[[], list[tuple[Path, str]]]] = {"pocketsphinx": _pocketsphinx, "asterisk": _asterisk}
    found = dict[str, Recordings]()
    for source in settings.sources:
        pairs = readers[source]()
        if not pairs:
            raise DataMissing(f"workload.outside: no recording of {source!r} is here. Install it: {_INSTALL[source]}")
        samples, symbols = list[Array](), list[list[int]]()
        for path, text in pairs:
            read = read_wave(path)
            if len(read) <= settings.max_seconds * RATE:
                samples.append(np.rint(checked(read, RATE, str(path)).clip(-1, 1) * 32767.0).astype(np.int16))
                symbols.append(encode(text, str(path)))
        order = sorted(range(len(samples)), key=lambda row: len(samples[row]))
        found[source] = Recordings([samples[row] for row in order], [symbols[row] for row in order], device)
    return found


def _pocketsphinx() -> list[tuple[Path, str]]:
    found = []
    for folder, name in (("librivox", "transcription"), ("cards", "cards.transcription")):
        file = POCKETSPHINX / folder / name
        lines = _LINE.findall(file.read_text(encoding="utf-8")) if file.is_file() else []
        found += [(file.parent / f"{number}.wav", text.strip()) for text, number in lines]
    return found


def _asterisk() -> list[tuple[Path, str]]:
    """Return the prompts whose text has nothing but words of letters, punctuation removed."""
    if not ASTERISK_TEXTS.is_file():
        return []
    found = []
    with gzip.open(ASTERISK_TEXTS, "rt", encoding="utf-8", errors="replace") as file:
        lines = [line.partition(":") for line in file if ":" in line and not line.startswith(";")]
    for key, _, text in lines:
        path, plain = ASTERISK / f"{key.strip()}.wav", " ".join(re.sub(r"[.,!?;:\"-]", " ", text.lower()).split())
        if path.is_file() and plain and all(each in CHARACTERS for each in plain):
            found.append((path, plain))
    return found
