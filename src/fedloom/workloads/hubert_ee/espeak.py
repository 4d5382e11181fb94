"""Speech by eSpeak NG, the library that the package `espeakng-loader` brings, driven through ctypes.

The library does not give equal samples for equal texts, not even in fresh processes: whoever needs the same speech
again stores it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import resample_poly

from fedloom.core.errors import DataMissing
from fedloom.core.extras import needed_by
from fedloom.core.records import Array

_SYNCHRONOUS, _RATE, _PITCH, _CHARACTERS, _UTF8 = 2, 1, 3, 1, 1
_NATIVE = 22_050
_CALLBACKS: list[object] = []
"""What the library calls; it must live as long as the library."""
VARIANTS = {
    "train": (
        *("m1", "m2", "m3", "m4", "m5", "f1", "f2", "f4", "Alex", "Alicia"),
        *("Andrea", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco"),
        *("Mario", "Mike", "adam", "antonio", "belinda", "benjamin", "boris", "caleb", "david", "ed"),
        *("edward", "grandma", "ian", "john", "linda", "max", "pablo", "quincy", "robert", "steph"),
    ),
    "dev": ("m8", "Andy", "aunty", "michel", "shelby", "victor"),
    "test": ("m6", "m7", "f3", "f5", "Michael", "anika", "paul", "steph2", "travis", "zac"),
}
"""Variants of the voice, by split."""


@dataclass(frozen=True, slots=True)
class Voice:
    """An accent and a variant of it."""

    accent: str
    variant: str

    @property
    def name(self) -> str:
        """Return the name eSpeak NG knows it by."""
        return f"{self.accent}+{self.variant}"


def voices(split: str, accents: Sequence[str]) -> list[Voice]:
    """Return every variant of a split in these accents."""
    return [Voice(accent, variant) for variant in VARIANTS[split] for accent in accents]


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance to be spoken."""

    text: str
    voice: str
    """Name of the voice, `Voice.name`."""
    rate: int
    """Words per minute."""
    pitch: int
    """0 to 100."""


def speak(line: Line) -> Array:
    """Return the speech of a line at 16,000 samples per second, (n,), float32 from -1 to 1.

    Raises:
        PackageMissing: `espeakng-loader` is not installed.
        DataMissing: the library has no such voice, or makes no sound of the text.
    """
    library, spoken = _library()
    if library.espeak_SetVoiceByName(line.voice.encode()) != 0:
        raise DataMissing(
            f"workload.speech: eSpeak NG has no voice {line.voice!r}; another version of espeakng-loader?"
        )
    library.espeak_SetParameter(_RATE, line.rate, 0)
    library.espeak_SetParameter(_PITCH, line.pitch, 0)
    spoken.clear()
    data = line.text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
    samples = np.concatenate(spoken) if spoken else np.zeros(0, np.int16)
    if not len(samples):
        raise DataMissing(f"workload.speech: eSpeak NG made no sound of {line.text!r}")
    return np.asarray(resample_poly(samples.astype(np.float64) / 32768.0, 320, 441), np.float32)


@functools.cache
def _library() -> tuple[ctypes.CDLL, list[Array]]:
    """Return the initialised library, and the list its callback fills."""
    with needed_by("workload.speech (source 'espeak')"):
        import espeakng_loader
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate != _NATIVE:
        raise DataMissing(f"workload.speech: eSpeak NG speaks at {rate} samples per second, expected {_NATIVE}")
    spoken: list[Array] = []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def take(samples: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if samples and count > 0:
            spoken.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    _CALLBACKS.append(kind(take))
    library.espeak_SetSynthCallback(_CALLBACKS[-1])
    return library, spoken
