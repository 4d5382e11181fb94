"""Recordings in the layout of Debian's packages, and WAVE files that are none."""

from __future__ import annotations

import gzip
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads.hubert_ee import flite, outside
from fedloom.workloads.hubert_ee.config import OutsideSettings
from fedloom.workloads.hubert_ee.outside import load_outside
from fedloom.workloads.hubert_ee.vocabulary import decode
from fedloom.workloads.hubert_ee.waves import read_wave

CPU = torch.device("cpu")


def write(path: Path, samples: Array, rate: int, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())


def tone(seconds: float, rate: int) -> Array:
    return np.asarray(0.4 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both packages' files, two recordings each."""
    cards, books = tmp_path / "data" / "cards", tmp_path / "data" / "librivox"
    write(cards / "001.wav", tone(0.5, 16_000), 16_000)
    write(books / "sense-0880.wav", tone(1.0, 16_000), 16_000)
    (cards / "cards.transcription").write_text("<s> ten of clubs  </s> (001)\n", encoding="utf-8")
    (books / "transcription").write_text("<s> he was not </s> (sense-0880)\n", encoding="utf-8")
    write(tmp_path / "sounds" / "added.wav", tone(0.5, 8_000), 8_000)
    write(tmp_path / "sounds" / "digits" / "5.wav", tone(0.3, 8_000), 8_000)
    write(tmp_path / "sounds" / "beep.wav", tone(0.3, 8_000), 8_000)
    lines = "; Core sounds\n\nadded: Added.\ndigits/5: Five, please!\nbeep: [a tone]\nmissing: Not here.\nx: 5\n"
    with gzip.open(tmp_path / "texts.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    monkeypatch.setattr(outside, "POCKETSPHINX", tmp_path / "data")
    monkeypatch.setattr(outside, "ASTERISK", tmp_path / "sounds")
    monkeypatch.setattr(outside, "ASTERISK_TEXTS", tmp_path / "texts.gz")
    return tmp_path


def test_recordings_of_both_packages(installed: Path) -> None:
    found = load_outside(OutsideSettings(sources=("pocketsphinx", "asterisk")), CPU)
    assert {name: len(rows) for name, rows in found.items()} == {"pocketsphinx": 2, "asterisk": 2}
    (waves, lengths), targets = found["pocketsphinx"].batch(torch.arange(2))
    assert lengths.tolist() == [8000, 16000] and waves.shape == (2, 16000) and not waves[0, 8000:].any()
    said = [decode(row[1 : row[0] + 1]) for row in targets.tolist()]
    assert said == ["ten of clubs", "he was not"]
    (_, lengths), targets = found["asterisk"].batch(torch.arange(2))
    assert lengths.tolist() == [4800, 8000]  # resampled to twice the samples, the shortest first
    assert [decode(row[1 : row[0] + 1]) for row in targets.tolist()] == ["five please", "added"]
    assert len(load_outside(OutsideSettings(sources=("pocketsphinx",), max_seconds=0.6), CPU)["pocketsphinx"]) == 1


@pytest.mark.parametrize("source", ["pocketsphinx", "asterisk"])
def test_a_missing_package_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "POCKETSPHINX", tmp_path)
    monkeypatch.setattr(outside, "ASTERISK_TEXTS", tmp_path / "texts.gz")
    with pytest.raises(DataMissing, match=f"no recording of '{source}' is here. Install it: apt-get install {source}"):
        load_outside(OutsideSettings.model_validate({"sources": [source]}), CPU)


FLITE = """#!{python}
import sys, wave
from array import array
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rate = 8000 if given["-voice"] == "kal" else 16000
with wave.open(given["-o"], "wb") as file:
    file.setnchannels(1); file.setsampwidth(2); file.setframerate(rate)
    loud = 0 if given["-t"] == "silence" else 9000
    file.writeframes(array("h", [loud if n % 40 < 20 else -loud for n in range(rate // 2)]).tobytes())
"""


def test_the_voices_of_flite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataMissing, match=r"'flite' is not on the PATH. Install it \(apt-get install flite\)"):
        flite.speak("the", "flite:slt", 160)
    program = tmp_path / "flite"
    program.write_text(FLITE.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    assert len(flite.speak("the", "flite:slt", 160)) == 8000
    assert len(flite.speak("the", "flite:kal", 160)) == 8000  # half a second at 8,000, resampled
    with pytest.raises(DataMissing, match="'flite:slt' is silent for 'silence'"):
        flite.speak("silence", "flite:slt", 160)


def test_a_resampled_tone_is_the_same_tone(tmp_path: Path) -> None:
    write(tmp_path / "x.wav", tone(1.0, 8_000), 8_000)
    found = read_wave(tmp_path / "x.wav")
    assert len(found) == 16_000 and np.abs(found[1000:-1000] - tone(1.0, 16_000)[1000:-1000]).max() < 0.01


def test_files_that_are_no_such_speech_are_refused(installed: Path) -> None:
    path = installed / "data" / "cards" / "001.wav"
    chosen = OutsideSettings(sources=("pocketsphinx",))
    write(path, tone(0.5, 44_100), 44_100)
    with pytest.raises(
        DataMissing, match=r"001.wav: has 1 channels of 16 bits at 44100 samples per second, expected 1"
    ):
        load_outside(chosen, CPU)
    path.write_bytes(b"no wave")
    with pytest.raises(DataMissing, match=r"001.wav: cannot be read as a WAVE file"):
        load_outside(chosen, CPU)
    path.write_bytes(b"")
    with pytest.raises(DataMissing, match=r"001.wav: cannot be read as a WAVE file"):
        load_outside(chosen, CPU)
    write(path, np.zeros(8000), 16_000)
    with pytest.raises(DataMissing, match=r"001.wav: is silent"):
        load_outside(chosen, CPU)
