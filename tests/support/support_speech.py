"""A tiny encoder with exits, and made-up utterances, for every test of the workload."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.workloads.hubert_ee.config import NetSettings
from fedloom.workloads.hubert_ee.net import EarlyExit

SIZES: dict[str, Any] = {"layers": 4, "width": 16, "heads": 2, "feed_forward": 24, "channels": 8}


SMALL: dict[str, Any] = {
    "speech": {
        "source": "espeak",
        "train_utterances": 24,
        "dev_utterances": 8,
        "test_utterances": 9,
        "vocabulary": 5,
        "words": [1, 2],
    },
    "net": SIZES,
    "exits": [1, 3],
    "criterion": {"threshold": 0.02},
    "training": {"learning_rate": 0.05, "momentum": 0.9, "batch_size": 8},
}


CALIBRATED: dict[str, Any] = {"criterion": {"threshold": "calibrated"}}


def experiment(workload: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    """One client with 24 utterances of five words; `workload` and other settings are laid over it."""
    return Experiment.parse(
        {
            "rounds": 2,
            "runtime": {"name": "inline"},
            "strategy": "fedavg",
            **({} if settings.get("clients") == "nodes" else {"evaluation": {"parts": 1}}),
            "workload": {"name": "hubert_ee", **SMALL, **(workload or {})},
            **settings,
        }
    )


def build(made: Experiment) -> Any:
    """The experiment's workload."""
    return registry.part("workloads", "hubert_ee", "workload").build_workload(made.workload, made)


def net(kind: str = "attention", exits: tuple[int, ...] = (1, 3), **sizes: Any) -> EarlyExit:
    """Four layers with branches after the first and the third, in evaluation mode."""
    torch.manual_seed(3)
    return EarlyExit(NetSettings(**{**SIZES, **sizes}), exits, kind).eval()


def waves(*samples: int) -> tuple[Tensor, Tensor]:
    """Noise of these lengths, padded with zeros, and the lengths."""
    generator = torch.Generator().manual_seed(5)
    padded = torch.zeros(len(samples), max(samples))
    for row, count in enumerate(samples):
        padded[row, :count] = 0.1 * torch.randn(count, generator=generator)
    return padded, torch.tensor(samples)


def librispeech(folder: Path, seed: int, sides: Sequence[str] = ("train", "dev", "test"), count: int = 6) -> None:
    """Folders in LibriSpeech's layout, a speaker each, with noise for speech."""
    import soundfile

    rng = np.random.Generator(np.random.PCG64(seed))
    for number, side in enumerate(sides):
        name = f"{10 * seed + number + 1}"
        home = folder / side / name / "7"
        home.mkdir(parents=True)
        lines = []
        for utterance in range(count):
            key = f"{name}-7-{utterance:04d}"
            soundfile.write(home / f"{key}.flac", 0.1 * rng.normal(size=8000 + 40 * utterance), 16_000)
            lines.append(f"{key} {('HE SAID', 'SHE', 'IT WAS')[utterance % 3]}")
        (home / f"{name}-7.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
