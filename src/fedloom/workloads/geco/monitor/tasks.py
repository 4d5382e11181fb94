"""Which sentences a client explains."""

from __future__ import annotations

from dataclasses import dataclass

from fedloom.workloads.geco.monitor.pattern import Pattern
from fedloom.workloads.geco.sentences import Sentence


@dataclass(frozen=True, slots=True)
class Task:
    """The sentences a client explains, each with a word that differs between its versions."""

    sentences: tuple[Sentence, ...]
    versions: tuple[str, ...]
    labelled: bool
    """Whether versions are the networks' classes."""
    pattern: Pattern | None
