"""Seeds the global random generators for foreign code, and restores them afterwards.

Flower's strategies and the apps written for it draw from `random`, `numpy.random` and `torch`. Here they get streams
named by the experiment's seed. The generators are the process's, so one lock lets one piece of hosted code run at a
time.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedloom.core.records import Array

State: TypeAlias = Any
"""A generator's state, in its own library's form."""
_LOCK = threading.RLock()


@dataclass
class Streams:
    """The states of the three generators, to be switched in and out."""

    python: State
    """In the form of `random.getstate`."""
    numpy: State
    """In the form of `numpy.random.get_state`, the cached normal deviate included."""
    torch: Array | None = None
    """The CPU generator's bytes, uint8; None if torch is not loaded."""

    @classmethod
    def seeded(cls, rng: np.random.Generator) -> Streams:
        """Return fresh streams, all determined by `rng`."""
        python, numpy, torch = (int(seed) for seed in rng.integers(2**63, size=3))
        legacy = np.random.RandomState(np.random.MT19937(numpy))
        return cls(random.Random(python).getstate(), legacy.get_state(legacy=False), _torch_seeded(torch))

    @classmethod
    def current(cls) -> Streams:
        """Return the process's generators in their current state."""
        torch = sys.modules.get("torch")
        state = np.random.get_state(legacy=False)  # noqa: NPY002 - foreign code's generator, saved and put back
        return cls(random.getstate(), state, torch.get_rng_state().numpy().copy() if torch else None)

    def install(self) -> None:
        """Set the process's generators to these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002 - foreign code's generator, saved and put back
        torch = sys.modules.get("torch")
        if torch is not None and self.torch is not None:
            torch.set_rng_state(torch.from_numpy(self.torch.copy()))

    @contextmanager
    def switched_in(self) -> Iterator[None]:
        """Run the body on these streams, which it advances; afterwards the process's own are restored.

        torch computes with one thread meanwhile: their number affects the last bits of its sums.
        """
        with _LOCK, _one_thread():
            outside = Streams.current()
            self.install()
            try:
                yield
            finally:
                inside = Streams.current()
                self.python, self.numpy, self.torch = inside.python, inside.numpy, inside.torch
                outside.install()


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Run the body with the global generators seeded from `rng`."""
    with Streams.seeded(rng).switched_in():
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _torch_seeded(seed: int) -> Array | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    state: Array = torch.Generator().manual_seed(seed).get_state().numpy()
    return state
