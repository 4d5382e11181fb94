"""Robustness of a model: which images it still classifies correctly under an attack."""

from __future__ import annotations

import re
import time

import torch
from torch import Tensor, nn

from fedloom.core.records import JsonObject
from fedloom.strategies.meat.workload.config import MeasureSettings
from fedloom.strategies.meat.workload.images import Pixels
from fedloom.workloads._attacks.auto import STAGES, auto_attack
from fedloom.workloads._attacks.gradient import fgsm, pgd
from fedloom.workloads._attacks.losses import cross_entropy, margin

_BATCH = 250
_STEP_SHARE = 2.5
"""Number of times an evaluation's PGD could cross half of the ball: alpha = 2.5 epsilon / steps (Madry et al. 2018,
5)."""
_STAGES = {"apgd": STAGES[:2], "autoattack": STAGES}
_NAMED = re.compile(r"(pgd|cw)-(\d+)")


def right_under(model: nn.Module, images: Pixels, attack: str, epsilon: float) -> Tensor:
    """Return whether each image is classified correctly under `clean`, `fgsm`, `pgd-N` or `cw-N`; bool, shape (n,).

    The model must be in evaluation mode. A misclassified clean image counts as broken by every attack.
    """
    verdicts = []
    for x, y in zip(torch.split(images.x, _BATCH), torch.split(images.y, _BATCH), strict=True):
        moved = _attacked(model, x, y, attack, epsilon)
        with torch.no_grad():
            right = model(x).argmax(1) == y
            verdicts.append(right & (model(moved).argmax(1) == y) if moved is not x else right)
    return torch.cat(verdicts) if verdicts else torch.zeros(0, dtype=torch.bool)


def counted(model: nn.Module, images: Pixels, steps: int, epsilon: float) -> JsonObject:
    """Count images, those correct when clean, and those correct under PGD: sums that add over parts."""
    return {
        "examples": len(images),
        "clean": int(right_under(model, images, "clean", epsilon).sum()),
        "robust": int(right_under(model, images, f"pgd-{steps}", epsilon).sum()),
    }


def table(model: nn.Module, images: Pixels, settings: MeasureSettings, epsilon: float, seed: int) -> JsonObject:
    """Run every attack of the table on the same images.

    Returns:
        `verdicts`: by attack (`clean` first; AutoAttack also by its stages, each after those before it), a string with
        `1` for every image still correct and `0` for the others. `seconds`: the duration of each attack.
    """
    verdicts = {"clean": _text(right_under(model, images, "clean", epsilon))}
    seconds: dict[str, float] = {}
    for attack in settings.table:
        begin = time.perf_counter()
        if attack in _STAGES:
            stages = auto_attack(
                model,
                images.x,
                images.y,
                epsilon=epsilon,
                seed=seed,
                stages=_STAGES[attack],
                iterations=settings.iterations,
            )
            verdicts |= {name: _text(right) for name, right in stages.items() if name != "clean"}
            verdicts[attack] = _text(list(stages.values())[-1])
        else:
            verdicts[attack] = _text(right_under(model, images, attack, epsilon))
        seconds[attack] = time.perf_counter() - begin
    return {"verdicts": verdicts, "seconds": seconds}


def _attacked(model: nn.Module, x: Tensor, y: Tensor, attack: str, epsilon: float) -> Tensor:
    if attack == "clean":
        return x
    if attack == "fgsm":
        return fgsm(model, x, y, epsilon=epsilon)
    named = _NAMED.fullmatch(attack)
    assert named is not None, attack
    steps = int(named[2])
    loss = margin if named[1] == "cw" else cross_entropy
    return pgd(model, x, y, epsilon=epsilon, step_size=_STEP_SHARE * epsilon / steps, steps=steps, loss=loss)


def _text(right: Tensor) -> str:
    return "".join("1" if each else "0" for each in right.tolist())
