"""A step of MLAAN against its parts: passes through modules, heads and leaps, each timed alone, times their counts.

`python -m benchmarks.mlaan`: ResNet-32, 15 modules, k = 3, 32 x 32 images, minibatches of 32, medians of process time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.workloads.mlaan.auxiliary import Plan
from fedloom.workloads.mlaan.config import Config
from fedloom.workloads.mlaan.heads import Batch, Head
from fedloom.workloads.mlaan.leap import window
from fedloom.workloads.mlaan.learner import Contest
from fedloom.workloads.mlaan.steps import LocalSteps

SHAPE, SIZE = (3, 32, 32), 32


def median(act: Callable[[], object], times: int) -> float:
    """Median of the process seconds of an action."""
    act()
    taken = []
    for _ in range(times):
        begin = time.process_time()
        act()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def differentiated(act: Callable[[Tensor], Tensor], x: Tensor, *, inside: bool) -> Callable[[], None]:
    """A forward and a backward pass; `inside` has the gradient go on to the input, as within a window."""

    def run() -> None:
        out = act(x.detach().requires_grad_(inside))
        out.backward(torch.ones_like(out))

    return run


def classified(steps: LocalSteps, batch: Batch, z: Tensor) -> Tensor:
    """The last module's loss."""
    return F.cross_entropy(steps.backbone.classifier(z), batch.y)


def lost(head: Head, batch: Batch, z: Tensor) -> Tensor:
    """A head's loss."""
    return head.loss(z, z, batch)


def leaped(steps: LocalSteps, module: int, z: Tensor) -> Tensor:
    """Features after a module's leap augmented blocks."""
    return steps.averages.leaped(z, steps.auxiliary.copied[module], steps.auxiliary.chain(module))


def parts(steps: LocalSteps, batch: Batch, times: int) -> dict[str, float]:
    """Seconds of the passes of one step: modules, heads with their losses, leaps; each alone, times its count."""
    found, x, size = {"modules": 0.0, "heads": 0.0, "leaps": 0.0}, batch.x, steps.settings.window
    last = len(steps.modules) - 1
    for module in range(len(steps.modules)):
        # once by itself, and once in each window: as its first module without a gradient to the input, else with one
        inside = sum(module in window(end, size) and window(end, size).start != module for end in range(last + 1))
        first = 1 + sum(window(end, size).start == module for end in range(last + 1))
        run = partial(steps.run, module)
        found["modules"] += first * median(differentiated(run, x, inside=False), times)
        found["modules"] += inside * median(differentiated(run, x, inside=True), times)
        x = steps.run(module, x).detach()
        if module == last:
            found["heads"] += 2 * median(differentiated(partial(classified, steps, batch), x, inside=True), times)
            continue
        own, end = steps.auxiliary.head(module, "independent"), steps.auxiliary.head(module, "cascade")
        found["heads"] += median(differentiated(partial(lost, own, batch), x, inside=True), times)
        leap = partial(leaped, steps, module)
        found["leaps"] += median(differentiated(leap, x, inside=True), times)
        z = leap(x).detach()
        found["heads"] += median(differentiated(partial(lost, end, batch), z, inside=True), times)
    return found


def main() -> None:
    """Measure, print, and save with `--out`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mlaan", description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="repetitions of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(config=Config(modes=("dgl_mlaan",)), shape=SHAPE, classes=10, seed=1)
    steps = Contest(plan, (0, plan.config.num_modules)).train().steps["dgl_mlaan"]
    batch = Batch(torch.randn(SIZE, *SHAPE), torch.arange(SIZE) % 10)
    whole = median(lambda: steps.gradients(batch), given.times)
    found = parts(steps, batch, given.times)
    ratio = whole / sum(found.values())
    shown = {"step_s": whole, **{f"{name}_s": value for name, value in found.items()}, "step_over_parts": ratio}
    print(json.dumps(shown, indent=2))
    if given.out is not None:
        given.out.write_text(json.dumps(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
