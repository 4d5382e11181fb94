"""Python objects that a program gives its run: they are in its process and in the run's own workers, nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedloom.core.errors import UsageError

_held: dict[str, object] = {}
"""Objects by the key that the experiment names."""


def hold(key: str, objects: object) -> None:
    """Make objects available in this process under a key, to its end."""
    _held[key] = objects


@contextmanager
def held(key: str, objects: object) -> Iterator[None]:
    """Make objects available in this process under a key, for a block."""
    before = _held.get(key)
    _held[key] = objects
    try:
        yield
    finally:
        if before is None:
            _held.pop(key, None)
        else:
            _held[key] = before


def objects_of(key: str) -> object:
    """Return the objects of a key.

    Raises:
        UsageError: they are not in this process.
    """
    if key not in _held:
        raise UsageError(
            "workload.objects: the model and the data of this experiment are Python objects of the program that called "
            "fedloom.run, and are stored nowhere. Resume the run with fedloom.resume(folder, model=…, data=…); to "
            'run it elsewhere, name files: model = "./net.py:Net" and [workload.data]'
        )
    return _held[key]
