"""Speech by Flite, the program of Debian's package `flite`: few voices, less like a machine's than eSpeak NG's."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads.hubert_ee.waves import read_wave

PREFIX = "flite:"
"""Begins the names of its voices."""
VARIANTS = {"train": ("kal16", "awb", "rms"), "dev": ("kal",), "test": ("slt",)}
"""Voices, by split."""
_WORDS_PER_MINUTE = 165.0


def speak(text: str, voice: str, rate: int) -> Array:
    """Return the speech of a text at 16,000 samples per second, (n,), float32 from -1 to 1.

    Args:
        text: words.
        voice: name with `PREFIX`.
        rate: words per minute, about.

    Raises:
        DataMissing: Flite is not installed, or makes no sound of the text.
    """
    program = shutil.which("flite")
    if program is None:
        raise DataMissing(
            "workload.speech.flite: the program 'flite' is not on the PATH. Install it (apt-get install flite), or set "
            "flite to false"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        stretch = f"duration_stretch={_WORDS_PER_MINUTE / rate:.4f}"
        command = [program, "-voice", voice.removeprefix(PREFIX), "--setf", stretch, "-t", text, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode or not path.is_file():
            raise DataMissing(f"workload.speech.flite: made no sound of {text!r} with {voice!r}: {done.stderr.strip()}")
        found = read_wave(path)
    if not np.abs(found).max(initial=0.0) > 0:
        raise DataMissing(f"workload.speech.flite: {voice!r} is silent for {text!r}")
    return found
