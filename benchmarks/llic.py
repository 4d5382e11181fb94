"""CPU seconds of a learned codec per megapixel, and the entropy model's and the range coder's shares of them.

`python -m benchmarks.llic`: untrained codecs of the preset's size and of the paper's, one thread, medians of process
time of repetitions on a synthetic picture. Of decoding a stream: all of it, without g_s, and the range coder alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from fedloom import api
from fedloom.core.records import Array
from fedloom.workloads.llic.bitstream import ImageCodec
from fedloom.workloads.llic.coder import Decoder
from fedloom.workloads.llic.config import Config
from fedloom.workloads.llic.net import Codec
from fedloom.workloads.llic.pixels import Pixels


def picture(side: int) -> Array:
    """Return a smooth noisy picture, (side, side, 3), uint8."""
    rng, (y, x) = np.random.default_rng(1), np.mgrid[:side, :side] / 24.0
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-2, 2, (3, 3))]
    return np.clip(128 + 80 * np.stack(waves, 2) + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)


def median(call: Callable[[], object], times: int) -> float:
    """Return the median of process seconds of a call; the first one warms up."""
    taken = []
    for _ in range(times + 1):
        begin = time.process_time()
        call()
        taken.append(time.process_time() - begin)
    return statistics.median(taken[1:])


class Timed(Decoder):
    """A decoder that adds up its own process seconds."""

    seconds = 0.0

    def __call__(self, symbols: Array | None, indices: Array) -> Array:
        begin = time.process_time()
        found = super().__call__(symbols, indices)
        Timed.seconds += time.process_time() - begin
        return found


def measure(config: Config, side: int, times: int) -> dict[str, float]:
    """Return seconds per megapixel of encoding and decoding, and shares of decoding."""
    torch.manual_seed(1)
    codec, rgb = ImageCodec(Codec(config)), picture(side)
    container, megapixels = codec.encode(Pixels(rgb)), side * side / 1e6
    decoding = median(lambda: codec.decode(container), times)
    entropy = median(lambda: codec.latent(container), times)
    return {
        "parameters": float(sum(p.numel() for p in codec.codec.parameters())),
        "encode_s_per_megapixel": median(lambda: codec.encode(Pixels(rgb)), times) / megapixels,
        "decode_s_per_megapixel": decoding / megapixels,
        "entropy_share_of_decoding": entropy / decoding,
        "range_coder_share_of_decoding": _coder_seconds(codec, rgb, times) / decoding,
    }


def _coder_seconds(codec: ImageCodec, rgb: Array, times: int) -> float:
    """Return the median of the range coder's process seconds in decoding a stream."""
    container, taken = codec.encode(Pixels(rgb)), list[float]()
    for _ in range(times):
        Timed.seconds = 0.0
        codec.latent(container, decoder=Timed)
        taken.append(Timed.seconds)
    return statistics.median(taken)


def main() -> None:
    """Print the figures, and write them as JSON if wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256, help="side of the picture; pixels")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--paper", action="store_true", help="the paper's size, too: minutes")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    preset = api.load("llic").workload
    if not isinstance(preset, Config):
        raise TypeError(f"expected the preset of llic, got {preset.name!r}")
    sizes = {"preset": preset} | ({"paper": Config()} if given.paper else {})
    found = {name: measure(config, given.side, given.times) for name, config in sizes.items()}
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for name, numbers in found.items():
        for key, value in numbers.items():
            print(f"{name:8} {key:32} {value:.4g}")


if __name__ == "__main__":
    main()
