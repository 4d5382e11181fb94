"""The sources of sentences."""

from __future__ import annotations

from fedloom.workloads.geco.config import Generated, SentenceSource
from fedloom.workloads.geco.generator import generate
from fedloom.workloads.geco.released import read_released
from fedloom.workloads.geco.sentences import Corpus


def load_corpus(source: SentenceSource, seed: int) -> Corpus:
    """Return the sentences a source describes.

    Raises:
        DataMissing: files are missing or broken.
        ConfigError: more pairs are wanted than there are, or the attribute is unknown.
    """
    return generate(source, seed) if isinstance(source, Generated) else read_released(source, seed)
