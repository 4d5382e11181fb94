"""Small learned codecs, photographs and runs, for every test of the workload."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.records import Array, JsonObject
from fedloom.workloads.llic.bitstream import ImageCodec
from fedloom.workloads.llic.config import Config, Rival
from fedloom.workloads.llic.net import Codec

BLOCKS = {"blocks": [0, 0, 1, 1], "synthesis_blocks": [1, 1, 0, 0], "kernels": [5, 5, 3, 3]}
TINY: dict[str, Any] = {
    "transform": BLOCKS,
    "channels": [4, 6, 8],
    "latent": 10,
    "entropy": {"hyper": 6, "context": [6, 6]},
    "rivals": ["jpeg"],
    "crop": {"size": 64, "last": 64},
}
"""Settings of the smallest LLIC with ELIC's entropy model."""
STF = {"kind": "stf", "hyper": 6, "slices": 2, "support": 1, "context": [6, 6, 6, 6]}
TCM = {
    "kind": "tcm", "hyper": 6, "slices": 2, "support": 1, "context": [6, 6], "attention": 4, "mixed": 8, "head": 2,
    "hyper_head": 2, "window": 4,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llic-elic": {},
    "llic-stf": {"entropy": STF},
    "llic-tcm": {"entropy": TCM},
    "elic": {"transform": {"kind": "elic"}},
    "stf": {
        "transform": {"kind": "stf", "embedding": 2, "depths": [1, 2, 1, 1], "head": 2, "window": 4},
        "latent": 16,
        "entropy": STF,
    },
    "tcm": {"transform": {"kind": "tcm", "heads": [1, 1, 2], "mixed_blocks": 1, "window": 4}, "entropy": TCM},
}
"""Settings of every codec, laid over `TINY`."""


def config(kind: str = "llic-elic", **settings: Any) -> Config:
    """Return the settings of a tiny codec."""
    return Config.model_validate({**TINY, **KINDS[kind], **settings})


def net(kind: str = "llic-elic", seed: int = 1, **settings: Any) -> Codec:
    """Return a tiny codec whose expected deviations fit its latents, as after training."""
    torch.manual_seed(seed)
    made = Codec(config(kind, **settings))
    with torch.no_grad():
        for name, parameter in made.entropy.named_parameters():
            if name.endswith(".4.bias") and name.startswith(("anchors", "others")):
                parameter[len(parameter) // 2 :].add_(1.5)
            elif name.endswith(("8.bias", "1.4.bias")) and name.startswith("scales"):
                parameter.add_(1.5)
    return made.eval()


def codec(kind: str = "llic-elic", seed: int = 1, **settings: Any) -> ImageCodec:
    """Return a tiny image codec."""
    torch.set_num_threads(1)
    return ImageCodec(net(kind, seed, **settings))


def picture(height: int, width: int, seed: int = 1) -> Array:
    """Return a smooth coloured picture, (height, width, 3), uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 24.0
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-2, 2, (3, 3))]
    noisy = 128 + 80 * np.stack(waves, 2) + rng.normal(0, 6, (height, width, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def album(folder: Path, *, kinds: int = 2, each: int = 2, size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    """Write photographs into a folder, in sub-folders by kind; returns the setting `workload.data`."""
    for kind in range(kinds):
        (folder / f"kind{kind}").mkdir(parents=True)
        for number in range(each):
            path = folder / f"kind{kind}" / f"{number}.png"
            Image.fromarray(picture(*size, seed=10 * kind + number)).save(path)
    (folder / "test").mkdir()
    Image.fromarray(picture(170, 168, seed=99)).save(folder / "test" / "a.png")
    Image.fromarray(picture(165, 190, seed=98)).save(folder / "test" / "b.png")
    return {"source": "folders", "train_folder": str(folder), "test_folder": str(folder / "test")}


def experiment(data: dict[str, Any], workload: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    """Return a run of tiny codecs, in this process."""
    training = {"optimizer": "adamw", "learning_rate": 1e-3, "batch_size": 4, "max_steps": 3, "clip_norm": 1.0}
    return Experiment.parse(
        {
            "rounds": 2,
            "runtime": {"name": "inline"},
            "strategy": "fedavg",
            "evaluation": {"parts": 1, "every": 2},
            "workload": {"name": "llic", **TINY, "data": data, "training": training, **(workload or {})},
            **settings,
        }
    )


def build(made: Experiment) -> Any:
    """Return the experiment's workload."""
    return registry.part("workloads", "llic", "workload").build_workload(made.workload, made)


class MadeUpCodec:
    """A workload that has nothing but a codec's report."""

    def codec_report(self, inputs: object, shard: object, *, pictures: int, rivals: Sequence[Rival]) -> JsonObject:
        """Return a report of one photograph."""
        line = {"name": "a", "pixels": 100, "bits_per_pixel": 0.5, "psnr": 30.0, "ms_ssim": None}
        return {"photographs": [line], "rivals": {}, "missing": {}, "pictures": [], "adaptivity": {}}
