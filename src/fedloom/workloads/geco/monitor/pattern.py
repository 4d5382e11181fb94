"""The covariance pattern: importance of words from the training sentences alone, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fedloom.core.records import Array
from fedloom.workloads.geco.sentences import Sentence


class Pattern:
    """|cov(x_w, y)| of each word's tf-idf value x_w with the version y of a sentence.

    x is a count times ln((1 + N) / (1 + N_w)) + 1, with N sentences of which N_w have the word, scaled to length 1 for
    each sentence. With more than two versions the largest covariance with one of them counts.

    Args:
        sentences: training sentences.
    """

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        counts = [Counter(word.lower() for word in each.words) for each in sentences]
        frequency = Counter(word for each in counts for word in each)
        places = {word: place for place, word in enumerate(sorted(frequency))}
        total = len(sentences)
        values = np.zeros((total, len(places)))
        for row, each in enumerate(counts):
            for word, count in each.items():
                values[row, places[word]] = count * (np.log((1.0 + total) / (1.0 + frequency[word])) + 1.0)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        versions = np.array([each.version for each in sentences])
        found = np.zeros(len(places))
        if total > 1:
            centred = values - values.mean(axis=0)
            for version in np.unique(versions):
                own = (versions == version).astype(np.float64)
                found = np.maximum(found, np.abs((own - own.mean()) @ centred) / (total - 1))
        self._importance: Mapping[str, float] = {word: float(found[place]) for word, place in places.items()}

    def importance(self, words: Sequence[str]) -> Array:
        """Return the importance of each word of a sentence, (n,), float64; 0 for words that training has not."""
        return np.array([self._importance.get(word.lower(), 0.0) for word in words])
