"""Acquired volumes: k-space and reference images, whatever their source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedloom.core.records import Array, JsonObject


@dataclass(frozen=True, slots=True)
class Acquired:
    """One volume's fully sampled k-space and its reference; its largest reference value is 1."""

    name: str
    anatomy: str
    site: int
    """Client that has it in the partition `natural`."""
    forget: bool
    """Whether its influence is to be removed."""
    kspace: Array
    """(slices, coils, h, w), complex64."""
    target: Array
    """(slices, h', w'), float32; a centre crop of the reconstruction's size."""


@dataclass(frozen=True, slots=True)
class VolumeSet:
    """Volumes for training and held-out ones."""

    train: Sequence[Acquired]
    test: Sequence[Acquired]
    anatomies: tuple[str, ...]
    files: Sequence[tuple[str, Path]]
    """What was read, by name."""
    info: JsonObject = field(default_factory=dict)
