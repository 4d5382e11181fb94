"""Decides what a node discloses of its classes: names that its owner allows, digests of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from fedloom.core.data_schema import FEW_EXAMPLES
from fedloom.core.errors import PolicyRefused
from fedloom.core.protocols import WorkloadInfo

MAX_CLASSES = 1000
"""Limit of classes a node discloses, by name or digest: a column with more is not one of classes."""
MAX_NAME = 64
"""Limit of characters of a disclosed class name."""
MIN_EXAMPLES = 5
"""Examples a class must have for its name or digest to be disclosed."""
_NAMING = ("label_names", "left_out", "remarks")
"""Facts of the data that may name classes or files; they never leave a node with a policy."""
FEW = FEW_EXAMPLES
"""Replaces the name of a class with fewer."""


def withheld_facts() -> tuple[str, ...]:
    """Return the names of facts of the data that never leave a node with a policy."""
    return _NAMING


def disclosed(info: WorkloadInfo, reported: Collection[str], run_id: str) -> WorkloadInfo:
    """Return a workload's description with the names of its classes as they may leave the node.

    Args:
        info: the description.
        reported: names that the node's policy lists.
        run_id: of the run; equal names have equal digests at all sites of one run, and other ones in the next.

    Raises:
        PolicyRefused: there are more classes than a node discloses.
    """
    names = info.label_names
    if len(names) > MAX_CLASSES:
        raise PolicyRefused(
            f"the data has {len(names)} classes, and a node discloses at most {MAX_CLASSES}: is the label column "
            "one of classes?",
            kind="data",
        )
    counts = _examples(info.label_counts, len(names))
    data = {key: value for key, value in info.data.items() if key not in _NAMING}
    return replace(
        info,
        data=data,
        label_names=[_disclosed_name(name, count, reported, run_id) for name, count in zip(names, counts, strict=True)],
    )


def digest_of_class(name: str, run_id: str) -> str:
    """Return the digest that replaces a class's name. A guess of the name can be verified with it."""
    return f"sha256:{hashlib.sha256((run_id + chr(0) + name).encode()).hexdigest()[:16]}"


def _disclosed_name(name: str, count: int, reported: Collection[str], run_id: str) -> str:
    if count < MIN_EXAMPLES:
        return FEW
    return name if name in reported and len(name) <= MAX_NAME else digest_of_class(name, run_id)


def _examples(counts: Sequence[Sequence[int]], classes: int) -> list[int]:
    """Return the examples of each class, all clients together; 0 if they are not known."""
    return [sum(client[index] for client in counts) for index in range(classes)]
