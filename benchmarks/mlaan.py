"""A step of MLAAN against its parts: passes through modules, heads and leaps, each timed alone, times their counts.

`python -m benchmarks.mlaan`: ResNet-32, 15 modules, k = 3, 32 x 32 images, minibatches of 32, medians of process time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fedloom.workloads.mlaan.auxiliary import Plan
from fedloom.workloads.mlaan.config import Config
from fedloom.workloads.mlaan.heads import Batch
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


def parts(steps: LocalSteps, batch: Batch, times: int) -> dict[str, float]:
    """Seconds of the passes of one step: modules, heads with their losses, leaps; each alone, times its count."""
    found, x, size = {"modules": 0.0, "heads": 0.0, "leaps": 0.0}, batch.x, steps.settings.window
    last = len(steps.modules) - 1
    for module in range(len(steps.modules)):
        # once by itself, and once in each window: as its first module without a gradient to the input, else with one
        inside = sum(module in window(end, size) and window(end, size).start != module for end in range(last + 1))
        first = 1 + sum(window(end, size).start == module for end in range(last + 1))
        run = lambda z, module=module: steps.run(module, z)  # noqa: E731
        found["modules"] += first * median(differentiated(run, x, inside=False), times)
        found["modules"] += inside * median(differentiated(run, x, inside=True), times)
        x = steps.run(module, x).detach()
        if module == last:
            head = lambda z: torch.nn.functional.cross_entropy(steps.backbone.classifier(z), batch.y)  # noqa: E731
            found["heads"] += 2 * median(differentiated(head, x, inside=True), times)
            continue
        own = steps.auxiliary.head(module, "independent")
        found["heads"] += median(differentiated(lambda z, own=own: own.loss(z, z, batch), x, inside=True), times)
        chain, copied = steps.auxiliary.chain(module), steps.auxiliary.copied[module]
        leap = lambda z, copied=copied, chain=chain: steps.averages.leaped(z, copied, chain)  # noqa: E731
        found["leaps"] += median(differentiated(leap, x, inside=True), times)
        z, end = leap(x).detach(), steps.auxiliary.head(module, "cascade")
        found["heads"] += median(differentiated(lambda z, end=end: end.loss(z, z, batch), z, inside=True), times)
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
