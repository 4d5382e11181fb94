"""Which held-out examples a run's final model classifies correctly: the basis of its accuracy's sampling error.

Stored in the run's folder as one bit per example, so that two runs can be compared example by example.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedloom.core.config import Experiment
from fedloom.core.plugins import build_workload
from fedloom.core.protocols import HasLogits
from fedloom.core.records import MODEL, Arrays, JsonObject, Record
from fedloom.reporting.page import write_page

FILE = "held-out.json"
Bits = npt.NDArray[np.bool_]


def write(arrays: Arrays, experiment: Experiment, folder: Path) -> None:
    """Write `held-out.json`: the number of examples, a digest of their labels, and which are correct, packed in hex.

    Without a classifier, whose workload declares its classes, it is an empty object.
    """
    write_page(folder / FILE, json.dumps(_measured(arrays, experiment)) + "\n")


def read(folder: Path) -> tuple[Bits, str] | None:
    """Return which examples are correct, (n,), and the digest of the labels; None if the run has none."""
    path = folder / FILE
    values: JsonObject = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return (unpack(values["right"], values["examples"]), values["labels"]) if values else None


def pack(right: Bits) -> str:
    """Return bits as hexadecimal digits, the first example in the highest bit."""
    return np.packbits(right).tobytes().hex()


def unpack(text: str, examples: int) -> Bits:
    """Return the bits of `pack`, (examples,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=examples).astype(np.bool_)


def _measured(arrays: Arrays, experiment: Experiment) -> JsonObject:
    workload = build_workload(experiment.workload, experiment)
    shard = workload.held_out(0, 1)
    if not isinstance(workload, HasLogits) or shard is None or not len(workload.describe().label_counts):
        return {}
    logits, labels = workload.logits({MODEL: Record({MODEL: arrays})}, shard)
    if labels is None:
        return {}
    digest = hashlib.sha256(np.ascontiguousarray(labels, np.int64).tobytes()).hexdigest()[:16]
    return {"examples": len(labels), "labels": digest, "right": pack(logits.argmax(axis=1) == labels)}
