"""AutoAttack with its official settings, through the package `pyautoattack`, an optional dependency."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedloom.core.errors import UsageError
from fedloom.core.records import Info

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
"""In the order of the standard version; each attacks the points that are still classified correctly."""
PACKAGE = "pyautoattack"


def require_auto_attack() -> None:
    """Check before training that the package is installed.

    Raises:
        UsageError: the package is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UsageError(
            f"AutoAttack needs the package {PACKAGE!r}, which is not installed. Install it with "
            '`pip install "fedloom[attacks]"`, or remove "autoattack" from the attacks'
        )


def auto_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    seed: int,
    stages: Sequence[str] = STAGES,
    iterations: int = 100,
    queries: int = 5000,
    batch_size: int = 250,
) -> dict[str, Tensor]:
    """Run AutoAttack of Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble".

    APGD on cross-entropy, targeted APGD on the difference-of-logits ratio, targeted FAB, Square; 100 iterations and 9
    targets (fewer if there are fewer classes), 5,000 queries.

    Args:
        model: from images to logits, in evaluation mode.
        x: images in [0, 1].
        y: labels.
        epsilon: radius of the ball; units of a pixel's range.
        seed: of every stage's random starts.
        stages: which to run; fewer than all four is not AutoAttack. The last takes most of the time and finds least.
        iterations: of APGD and FAB; fewer than 100 is not AutoAttack, and reported robustness is then too high.
        queries: of Square.
        batch_size: points attacked together. Part of the random starts, so of the last verdicts.

    Returns:
        For `clean` and every stage, whether each point is still classified correctly; bool, shape (b,).

    Raises:
        UsageError: the package is not installed, or there are fewer than 4 classes.
    """
    require_auto_attack()
    logits = _logits(model, x, batch_size)
    suite = _stages(model, logits.shape[1], epsilon, seed, iterations, queries)
    right = logits.argmax(1) == y
    verdicts = {"clean": right.clone()}
    for name in stages:
        for rows in torch.split(right.nonzero()[:, 0], batch_size):
            if len(rows):
                moved = suite[name](x[rows].clone(), y[rows].clone())
                right[rows] = _logits(model, moved, batch_size).argmax(1) == y[rows]
        verdicts[name] = right.clone()
    return verdicts


def _stages(model: nn.Module, classes: int, epsilon: float, seed: int, iterations: int, queries: int) -> Info:
    if classes < 4:
        raise UsageError(
            f'AutoAttack\'s targeted loss needs at least 4 classes, the data has {classes}; remove "autoattack"'
        )
    from pyautoattack import AutoAttack

    suite = AutoAttack(model, norm="Linf", eps=epsilon, version="standard", seed=seed)
    suite.apgd.loss = "ce"
    suite.fab.targeted = True
    suite.apgd.n_iter = suite.apgd_targeted.n_iter = suite.fab.n_iter = iterations
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = min(9, classes - 1)
    suite.square.n_queries = queries
    return dict(
        zip(STAGES, (s.perturb for s in (suite.apgd, suite.apgd_targeted, suite.fab, suite.square)), strict=True)
    )


def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(x, batch_size)])
