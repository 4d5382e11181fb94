"""The images the benchmarks train on: Fashion-MNIST where it is installed, else noise of the same shape."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from fedloom.core.seeds import generator
from fedloom.core.user_folders import cache_folder
from fedloom.workloads._data.settings import FASHION_MNIST

CHOSEN = "FEDLOOM_BENCH_DATA"
"""Environment variable naming a folder of IDX files; `--data` sets it for all runners."""
_SIZES = {"train": 60_000, "t10k": 10_000}


def data_folder() -> Path:
    """The folder of IDX files to use."""
    chosen = os.environ.get(CHOSEN)
    if chosen:
        return Path(chosen)
    return Path(FASHION_MNIST) if Path(FASHION_MNIST).is_dir() else _noise()


def is_real() -> bool:
    """Whether the accuracy of a run means anything."""
    return data_folder() != _noise_folder()


def _noise_folder() -> Path:
    return cache_folder() / "bench-noise"


def _noise() -> Path:
    """Random pictures and labels in Fashion-MNIST's form; speed and memory do not depend on what they show."""
    folder = _noise_folder()
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in _SIZES.items():
            rng = generator(1, "noise", split)
            images = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
            labels = rng.integers(10, size=count, dtype=np.uint8)
            head = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
            (folder / f"{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
            (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes())
        (folder / "done").touch()
    return folder
