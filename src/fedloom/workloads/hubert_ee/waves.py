"""WAVE files as samples."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads.hubert_ee.config import RATE


def read_wave(path: Path) -> Array:
    """Return a WAVE file's samples at 16,000 per second, (n,), float32 from -1 to 1; files at 8,000 are resampled.

    Raises:
        DataMissing: it is no WAVE file of one channel and 16 bits at one of these rates.
    """
    try:
        with wave.open(str(path), "rb") as file:
            rate, shape = file.getframerate(), (file.getnchannels(), file.getsampwidth())
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as exc:
        raise DataMissing(f"{path}: cannot be read as a WAVE file: {exc}") from exc
    if shape != (1, 2) or rate not in (RATE, RATE // 2):
        raise DataMissing(
            f"{path}: has {shape[0]} channels of {8 * shape[1]} bits at {rate} samples per second, expected 1 of 16 "
            f"bits at {RATE} or {RATE // 2}"
        )
    samples = np.frombuffer(data, "<i2").astype(np.float64) / 32768.0
    return np.asarray(samples if rate == RATE else resample_poly(samples, 2, 1), np.float32)
