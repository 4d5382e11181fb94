"""What unlearning is judged by: membership inference, distances to the oracle, content that was never measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array
from fedloom.workloads.mri_unlearning.operators import measured_part


def auc(members: Array, others: Array) -> float:
    """Return the probability that a member's error is below another's, ties half: 0.5 if nothing tells them apart.

    Args:
        members: errors of slices that were trained on, (n,).
        others: errors of slices that were not, (m,).
    """
    below = members[:, None] < others[None, :]
    return float((below + 0.5 * (members[:, None] == others[None, :])).mean())


def kolmogorov_smirnov(first: Array, second: Array) -> float:
    """Return the largest difference of two samples' distribution functions."""
    places = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(each), places, side="right") / len(each) for each in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def hallucination(image: Tensor, target: Tensor, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Split each image's error into what was never measured and what was.

    H = ‖P_null(image - target)‖ / ‖P_null target‖ and D = ‖P_meas(image - target)‖ / ‖target‖, P_meas = A^+ A and
    P_null = 1 - P_meas.

    Args:
        image: (b, h, w).
        target: (b, h, w).
        maps: sensitivities, (b, c, h, w).
        mask: sampled columns, (w,), bool.

    Returns:
        H and D, (b,) each.
    """
    apart = (image - target).to(maps.dtype)
    seen, true_seen = measured_part(apart, maps, mask), measured_part(target, maps, mask)
    invented = _norm(apart - seen) / _norm(target - true_seen).clamp_min(1e-12)
    return invented, _norm(seen) / _norm(target).clamp_min(1e-12)


def _norm(images: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(images, dim=(-2, -1))
    return found
