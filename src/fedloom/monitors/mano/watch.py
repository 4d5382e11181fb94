"""What a client sends: three sums over its samples, and how often each class is predicted. No label, no sample."""

from __future__ import annotations

import numpy as np

from fedloom.core.protocols import Watch
from fedloom.core.records import Array, Info
from fedloom.monitors.mano.config import Config
from fedloom.monitors.mano.score import Sums


def watch(logits: Array) -> Info:
    """Sums of the logits (n, K), and `predicted`: samples by predicted class, K counts."""
    classes = logits.shape[1]
    counts = np.bincount(np.argmax(logits, axis=1), minlength=classes) if len(logits) else np.zeros(classes)
    return {**Sums.of(logits).to_json(), "predicted": [float(count) for count in counts]}


def build_watch(config: Config) -> Watch:
    """The client half a `Config` describes; all clients send the same, whatever the settings."""
    return watch
