"""The bank: every corruption's family and strengths.

`mild` follows the severities published for CIFAR-10-C, as shares of the image's side where they are lengths, `harsh` is
about three times as strong if that leaves an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedloom.core.records import Array
from fedloom.strategies.mano.workload.corruptions import blur, geometric, noise, photometric
from fedloom.strategies.mano.workload.corruptions.draws import Draws

Bank = Literal["mild", "harsh"]
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Corruption:
    """One image corruption."""

    family: str
    """`noise`, `blur`, `geometric` or `photometric`."""
    apply: Callable[[Array, float, Draws], Array]
    mild: tuple[float, float, float, float, float]
    """Strengths of the severities 1 to 5."""
    harsh: tuple[float, float, float, float, float]


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(
        "noise", noise.gaussian_noise, (0.04, 0.06, 0.08, 0.1, 0.14), (0.1, 0.2, 0.3, 0.4, 0.5)
    ),
    "shot_noise": Corruption("noise", noise.shot_noise, (0.01, 0.02, 0.04, 0.06, 0.1), (0.1, 0.2, 0.35, 0.5, 0.8)),
    "impulse_noise": Corruption("noise", noise.impulse_noise, (0.01, 0.03, 0.06, 0.1, 0.15), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "speckle_noise": Corruption("noise", noise.speckle_noise, (0.1, 0.15, 0.25, 0.35, 0.5), (0.3, 0.5, 0.8, 1.2, 1.8)),
    "gaussian_blur": Corruption(
        "blur", blur.gaussian_blur, (0.014, 0.02, 0.03, 0.04, 0.055), (0.04, 0.06, 0.09, 0.12, 0.16)
    ),
    "defocus_blur": Corruption(
        "blur", blur.defocus_blur, (0.03, 0.045, 0.06, 0.08, 0.1), (0.08, 0.12, 0.16, 0.22, 0.3)
    ),
    "motion_blur": Corruption("blur", blur.motion_blur, (0.06, 0.1, 0.15, 0.2, 0.28), (0.15, 0.25, 0.4, 0.55, 0.75)),
    "zoom": Corruption("geometric", geometric.zoom, (0.06, 0.1, 0.16, 0.22, 0.3), (0.2, 0.35, 0.5, 0.75, 1.0)),
    "shrink": Corruption("geometric", geometric.shrink, (0.05, 0.09, 0.14, 0.2, 0.27), (0.15, 0.25, 0.35, 0.45, 0.6)),
    "rotate": Corruption("geometric", geometric.rotate, (5, 9, 14, 20, 28), (15, 30, 45, 65, 90)),
    "translate": Corruption(
        "geometric", geometric.translate, (0.03, 0.05, 0.08, 0.11, 0.15), (0.08, 0.14, 0.2, 0.28, 0.36)
    ),
    "shear": Corruption("geometric", geometric.shear, (0.06, 0.12, 0.18, 0.25, 0.35), (0.2, 0.35, 0.5, 0.7, 1.0)),
    "elastic": Corruption(
        "geometric", geometric.elastic, (0.015, 0.025, 0.035, 0.045, 0.06), (0.04, 0.06, 0.09, 0.12, 0.16)
    ),
    "brightness": Corruption(
        "photometric", photometric.brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.15, 0.3, 0.45, 0.6, 0.75)
    ),
    "contrast": Corruption(
        "photometric", photometric.contrast, (0.25, 0.4, 0.55, 0.7, 0.85), (0.6, 0.75, 0.85, 0.92, 0.97)
    ),
    "gamma": Corruption("photometric", photometric.gamma, (0.25, 0.5, 0.8, 1.2, 1.8), (1.0, 2.0, 3.5, 6.0, 10.0)),
    "fog": Corruption("photometric", photometric.fog, (0.1, 0.17, 0.25, 0.33, 0.45), (0.3, 0.45, 0.6, 0.75, 0.9)),
    "inversion": Corruption(
        "photometric", photometric.inversion, (0.06, 0.12, 0.18, 0.24, 0.32), (0.2, 0.35, 0.6, 0.8, 1.0)
    ),
    "pixelate": Corruption(
        "photometric", photometric.pixelate, (0.04, 0.06, 0.09, 0.12, 0.16), (0.1, 0.14, 0.2, 0.25, 0.34)
    ),
    "occlusion": Corruption(
        "photometric", photometric.occlusion, (0.15, 0.22, 0.29, 0.36, 0.43), (0.3, 0.45, 0.6, 0.72, 0.85)
    ),
}


def corrupted(images: Array, name: str, severity: int, *, bank: Bank, seed: int, rows: Array) -> Array:
    """Return the corrupted images.

    Args:
        images: (n, c, h, w), pixels from 0 to 1.
        name: of `CORRUPTIONS`.
        severity: 1 to 5.
        bank: which strengths.
        seed: of the random part; an image's own follows from it, the corruption and its row.
        rows: the images' numbers in their set, (n,).

    Returns:
        The same shape, float32, pixels from 0 to 1.
    """
    corruption = CORRUPTIONS[name]
    strengths = corruption.mild if bank == "mild" else corruption.harsh
    changed = corruption.apply(np.asarray(images, np.float64), strengths[severity - 1], Draws(seed, name, rows))
    return np.clip(changed, 0.0, 1.0).astype(np.float32)
