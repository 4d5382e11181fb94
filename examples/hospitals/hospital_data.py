"""What each hospital has of its own: a table, notes and images, all of data that packages ship; and a policy."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

HERE = Path(__file__).resolve().parent
PLUGIN = HERE / "patients.py"
HOSPITALS = {"north": 0.5, "south": 0.3, "west": 0.2}
"""Each hospital's share of the examples."""
COLUMNS = ("radius", "texture", "perimeter", "area", "smoothness")
WORDS = {
    "heart": ("pulse", "valve", "rhythm", "pressure", "murmur"),
    "lung": ("breath", "cough", "oxygen", "wheeze", "sputum"),
    "skin": ("rash", "lesion", "itch", "mole", "blister"),
}


def policy(data: Path) -> str:
    """Return a hospital's policy: three workloads on its own data, and one file of code, with this very content."""
    digest = hashlib.sha256(PLUGIN.read_bytes()).hexdigest()
    columns = json.dumps([*COLUMNS, "diagnosis"])
    return f"""code = ["{PLUGIN}#sha256={digest}"]
[workloads."{PLUGIN}"]
data = "{data}"
columns = {columns}
[workloads.text_classification]
data = "{data}"
classes = ["heart", "lung", "skin"]
[workloads.spiking_classification]
data = "{data}"
"""


def make_data(folder: Path, name: str) -> None:
    """Write a hospital's own table, notes and images to a new folder."""
    folder.mkdir()
    names = [*HOSPITALS]
    start, share = sum(HOSPITALS[each] for each in names[: names.index(name)]), HOSPITALS[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    x, y = load_breast_cancer(return_X_y=True)
    part = slice(int(start * len(x)), int((start + share) * len(x)))
    with (folder / "patients.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, "diagnosis"])
        table.writerows([*row[: len(COLUMNS)], 1 - label] for row, label in zip(x[part], y[part], strict=True))
    with (folder / "notes.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for label in [*WORDS] * int(60 * share):
            table.writerow([" ".join(rng.choice(WORDS[label], 6)), label])
    digits = load_digits()
    part = slice(int(start * 600), int((start + share) * 600))
    images, labels = (digits.images[part] * 15).astype(np.uint8), digits.target[part]
    cut = len(images) * 3 // 4
    np.savez(folder / "scans.npz", x_train=images[:cut], y_train=labels[:cut], x_test=images[cut:], y_test=labels[cut:])
