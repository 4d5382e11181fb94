"""The only source of randomness: generators named by a path under the experiment's seed.

`generator(seed, "train", round, client)` is the same stream wherever and whenever it is created, so nothing
of a generator has to be saved, and no two paths share a stream.
"""

from __future__ import annotations

import hashlib
import operator

import numpy as np

from fedloom.core.errors import ConfigError

Part = str | int


def generator(seed: int, *path: Part) -> np.random.Generator:
    """Return a PCG64 generator for one path of the experiment.

    Args:
        seed: the experiment's seed, 0 <= seed < 2**63.
        path: the purpose, outermost first: strings and non-negative integers.

    Returns:
        A fresh generator. Equal arguments give equal streams on every platform.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, path)))


def integer_seed(seed: int, *path: Part) -> int:
    """Return a seed below 2**63 for libraries with their own generator (torch, flwr-datasets)."""
    return int(_sequence(seed, path).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sequence(seed: int, path: tuple[Part, ...]) -> np.random.SeedSequence:
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed: expected an integer from 0 to 2**63 - 1, got {seed}")
    text = f"seed:{seed}"
    for part in path:
        text += f"\x00str:{part}" if isinstance(part, str) else f"\x00int:{operator.index(part)}"
    # One array of words: NumPy takes it seven times faster than an integer with a spawn key.
    return np.random.SeedSequence(np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u4"))
