"""Time at batch 1 against the layers that run: real stops at each exit, against the layers' and branches' own times.

`python -m benchmarks.early_exit`: 12 layers of width 192, linear and attention branches after 2, 5, 8 and 11, an
utterance of two seconds, medians of process time of paired repetitions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedloom.workloads.hubert_ee.config import NetSettings
from fedloom.workloads.hubert_ee.net import EarlyExit

EXITS, LAYERS = (2, 5, 8, 11), 12


def stopped(net: EarlyExit, wave: Tensor, exit_layer: int) -> float:
    """Process seconds of one utterance that leaves after a layer; branches below it are run, as they are when asked."""
    length, begin = torch.tensor([wave.shape[1]]), time.process_time()
    for number, _ in net.outputs(net.frames(wave, length)):
        if number == exit_layer:
            break
    return time.process_time() - begin


def plain(net: EarlyExit, wave: Tensor) -> float:
    """Process seconds of the model without branches."""
    length, begin = torch.tensor([wave.shape[1]]), time.process_time()
    net.last(net.frames(wave, length))
    return time.process_time() - begin


def measure(kind: str, times: int) -> dict[str, float]:
    """Medians for each exit, and the straight line of time over layers through them: its slope, its worst deviation."""
    torch.manual_seed(1)
    sizes = NetSettings(front="log_mel", norm="pre", layers=LAYERS, width=192, feed_forward=384, channels=96)
    net, wave = EarlyExit(sizes, EXITS, kind).eval(), 0.1 * torch.randn(1, 32_000)
    places = (*EXITS, LAYERS)
    taken: dict[int, list[float]] = {place: [] for place in (0, *places)}
    with torch.inference_mode():
        for _ in range(times + 1):  # the first one warms up
            for place in places:
                taken[place].append(stopped(net, wave, place))
            taken[0].append(plain(net, wave))
    found = {place: statistics.median(each[1:]) for place, each in taken.items()}
    slope, start = np.polyfit(EXITS, [found[place] for place in EXITS], 1)
    line = [start + slope * place for place in EXITS]
    shown = {f"exit_{place}_s": found[place] for place in places}
    shown["without_branches_s"] = found[0]
    shown["layer_s"] = float(slope)
    shown["worst_deviation_from_a_line"] = max(abs(found[p] / s - 1.0) for p, s in zip(EXITS, line, strict=True))
    shown["saved_at_first_exit"] = 1.0 - found[EXITS[0]] / found[0]
    shown["cost_of_never_leaving"] = found[LAYERS] / found[0] - 1.0
    return shown


def main() -> None:
    """Measure, print, and save with `--out`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.early_exit", description=__doc__)
    parser.add_argument("--times", type=int, default=15, help="repetitions of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shown = {kind: measure(kind, given.times) for kind in ("linear", "attention")}
    print(json.dumps(shown, indent=2))
    if given.out is not None:
        given.out.write_text(json.dumps(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
