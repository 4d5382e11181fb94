"""Descriptions of data with classes of every name and size, as a node's policy lets them leave: only what it lists."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from fedloom.client.disclosure import FEW, MAX_CLASSES, MAX_NAME, MIN_EXAMPLES, disclosed, withheld_facts
from fedloom.core.errors import PolicyRefused
from fedloom.core.protocols import WorkloadInfo

_PARTS = (
    "Patient",
    " 0 of 12 Mill Lane",
    "\u00e9",
    "e\u0301",
    "\0",
    "sha256:",
    "fewer than",
    "x" * 70,
    "1",
    '"',
    "\n",
    "cat",
)


def described(rng: np.random.Generator) -> tuple[WorkloadInfo, list[str]]:
    """Return a description, and the names that a policy lists."""
    count = int(rng.integers(0, 12)) if rng.random() < 0.95 else MAX_CLASSES + 1
    names = [f"{i}\u00a7" + "".join(rng.choice(_PARTS) for _ in range(rng.integers(1, 4))) for i in range(count)]
    counts = [[int(rng.integers(0, 6)) for _ in names] for _ in range(rng.integers(0, 4))]
    data = {"name": "own", "kind": "real", **{key: names for key in withheld_facts() if rng.random() < 0.5}}
    listed = [name for name in names if rng.random() < 0.3]
    return WorkloadInfo(
        data=data, label_counts=counts, label_names=names, client_sizes=[sum(c) for c in counts]
    ), listed


def fuzz_disclosure(count: int, seed: int) -> list[str]:
    """Let descriptions leave; returns what went wrong."""
    rng, wrong = np.random.default_rng(seed), list[str]()
    for _ in range(count):
        info, listed = described(rng)
        try:
            sent = disclosed(info, listed, "run")
        except PolicyRefused:
            wrong += [] if len(info.label_names) > MAX_CLASSES else [f"refused {len(info.label_names)} classes"]
            continue
        text = json.dumps(dataclasses.asdict(sent), ensure_ascii=False)
        totals = [sum(client[i] for client in info.label_counts) for i in range(len(info.label_names))]
        for name, total, found in zip(info.label_names, totals, sent.label_names, strict=True):
            may = name in listed and len(name) <= MAX_NAME and total >= MIN_EXAMPLES
            as_json = json.dumps(name, ensure_ascii=False)[1:-1]
            if found != (name if may else FEW if total < MIN_EXAMPLES else found) or (not may and as_json in text):
                wrong.append(f"class {name!r} with {total} examples, listed: {name in listed}, left as {found!r}")
        again = disclosed(info, listed, "run")
        if again.label_names != sent.label_names:
            wrong.append("equal names have different digests in one run")
    return wrong
