"""How long the median of a history takes, and its memory beside the history: `python -m benchmarks.median`."""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np

from fedloom.core.seeds import generator
from fedloom.strategies.meat.ensembles import mean, median, stored

_LAYER = 1 << 20
"""Weights in each made-up layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=11_172_170, help="weights of the model; PreAct ResNet-18's")
    parser.add_argument("--snapshots", type=int, default=46, help="snapshots in the window; the paper's at the end")
    parser.add_argument("--half", action="store_true", help="keep them as float16")
    wanted = parser.parse_args()
    rng = generator(1, "benchmark", "median")
    sizes = [_LAYER] * (wanted.weights // _LAYER) + [wanted.weights % _LAYER]
    model = {str(layer): rng.standard_normal(size, np.float32) for layer, size in enumerate(sizes)}
    history = [
        stored(
            {name: array + 0.01 * rng.standard_normal(array.size, np.float32) for name, array in model.items()},
            half=wanted.half,
        )
        for _ in range(wanted.snapshots)
    ]
    kept = sum(array.nbytes for each in history for array in each.values())
    print(f"{wanted.snapshots} snapshots of {wanted.weights:,} weights: {kept / 1e9:.2f} GB")
    for name, combine in (("median", median), ("mean", mean)):
        tracemalloc.start()
        begin = time.process_time()
        combine(history, model)
        took, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(
            f"{name}: {took:.1f} s of one core, {peak / 1e6:.0f} MB beside them (result: {4e-6 * wanted.weights:.0f})"
        )


if __name__ == "__main__":
    main()
