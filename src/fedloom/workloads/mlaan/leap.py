"""Which blocks make up a module, and which later blocks its auxiliary network copies. Blocks and modules count from 0.

A network has S stages of n blocks each; block b lies in stage b // n. Every stage but the first begins with a block
that doubles the channels, its entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from fedloom.core.errors import ConfigError

Rule = Literal["leap", "next", "random"]
Blocks = tuple[int, ...]
Lists = Sequence[Sequence[tuple[int, int]]]
"""Blocks of each module but the last, as (stage, block), from 1 and from 0."""


def partition(blocks: int, modules: int) -> tuple[range, ...]:
    """Cut blocks into consecutive modules whose sizes differ by at most one.

    Raises:
        ConfigError: there are more modules than blocks.
    """
    if not 1 <= modules <= blocks:
        raise ConfigError(
            f"workload.modules: expected 1 to {blocks}, the blocks of the network, got {modules}. Set fewer modules or "
            "a larger workload.net.depth"
        )
    edges = [round(blocks * edge / modules) for edge in range(modules + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(edges))


def window(module: int, size: int, first: int = 0) -> range:
    """Return the modules that the cascade of a module reaches: the last `size` up to it, none before `first`."""
    return range(max(first, module - size + 1), module + 1)


def leap_blocks(last: int, stages: int, per_stage: int, depth: int) -> Blocks:
    """Return the blocks that a module's leap augmented network copies, in order; none after the last block.

    The entries of all later stages, then further blocks spread evenly over the last stage, its last block included, up
    to `depth` in all. A reconstruction of the lists released with MLAAN (arXiv 2406.16633).

    Args:
        last: the module's last block.
        stages: stages of the network.
        per_stage: blocks of a stage.
        depth: number of blocks, d.
    """
    total = stages * per_stage
    entries = [stage * per_stage for stage in range(1, stages) if stage * per_stage > last]
    start = max(last, (stages - 1) * per_stage)  # the last block that is taken already, or may not be
    left = total - 1 - start
    further = min(max(depth - len(entries), 1 if left else 0), left)
    spread = [start + math.ceil(left * index / further) for index in range(1, further + 1)] if further else []
    return tuple(sorted({*entries, *spread}))


def next_blocks(last: int, stages: int, per_stage: int, depth: int) -> Blocks:
    """Return the `depth` blocks right after a module: the ablation without leaps."""
    return tuple(range(last + 1, min(last + 1 + depth, stages * per_stage)))


def random_blocks(last: int, stages: int, per_stage: int, depth: int, rng: np.random.Generator) -> Blocks:
    """Return the entries of all later stages, and further later blocks at random, up to `depth`: an ablation."""
    later = range(last + 1, stages * per_stage)
    entries = [block for block in later if block % per_stage == 0]
    others = [block for block in later if block % per_stage]
    count = min(max(depth - len(entries), 0), len(others))
    return tuple(sorted([*entries, *rng.choice(others, count, replace=False).tolist()])) if count else tuple(entries)


def chosen_blocks(
    rule: Rule, modules: Sequence[range], stages: int, depth: int, rng: np.random.Generator
) -> tuple[Blocks, ...]:
    """Return the copied blocks of every module but the last, by a rule."""
    per_stage = modules[-1].stop // stages
    lasts = [module[-1] for module in modules[:-1]]
    if rule == "random":
        return tuple(random_blocks(last, stages, per_stage, depth, rng) for last in lasts)
    pick = {"leap": leap_blocks, "next": next_blocks}[rule]
    return tuple(pick(last, stages, per_stage, depth) for last in lasts)


def check_lists(lists: Lists, modules: Sequence[range], stages: int) -> tuple[Blocks, ...]:
    """Return blocks given by (stage, block), each from 1 and from 0, as numbers of blocks.

    Raises:
        ConfigError: there is not one list per module but the last, or a block is outside the network, not after its
            module, out of order, or changes the channels without the entry of its stage.
    """
    per_stage = modules[-1].stop // stages
    if len(lists) != len(modules) - 1:
        raise ConfigError(
            f"workload.leap.blocks: expected {len(modules) - 1} lists, one for every module but the last, "
            f"got {len(lists)}"
        )
    found = []
    for number, (given, module) in enumerate(zip(lists, modules[:-1], strict=True), 1):
        where = f"workload.leap.blocks, module {number}"
        for stage, block in given:
            if not (1 <= stage <= stages and 0 <= block < per_stage):
                raise ConfigError(
                    f"{where}: block ({stage}, {block}) is outside the network; stages are 1 to {stages}, blocks 0 to "
                    f"{per_stage - 1}"
                )
        blocks = [(stage - 1) * per_stage + block for stage, block in given]
        if blocks != sorted({*blocks}) or (blocks and blocks[0] <= module[-1]):
            raise ConfigError(
                f"{where}: expected rising blocks after the module's own last one "
                f"{(module[-1] // per_stage + 1, module[-1] % per_stage)}, got {[*map(tuple, given)]}"
            )
        _check_entries(blocks, module[-1], per_stage, where)
        found.append(tuple(blocks))
    return tuple(found)


def _check_entries(blocks: Sequence[int], last: int, per_stage: int, where: str) -> None:
    """Refuse a chain of blocks whose channels do not fit each other."""
    for before, after in zip([last, *blocks[:-1]], blocks, strict=True):
        missing = list(range(before // per_stage + 1, after // per_stage + 1))
        if missing and (len(missing) > 1 or after % per_stage):
            entry = (missing[0] + 1, 0)
            raise ConfigError(
                f"{where}: block {(after // per_stage + 1, after % per_stage)} needs the channels of its stage; put "
                f"{entry} before it"
            )


def augmented_blocks(last: int, blocks: int, depth: int) -> Blocks:
    """Return the later blocks an AugLocal network is shaped like: round(l + (N - l - 1) i / d), i = 1 … d.

    Ma et al. 2024, "Scaling Supervised Local Learning with Augmented Auxiliary Networks".
    """
    return tuple(round(last + (blocks - last - 1) * index / depth) for index in range(1, depth + 1))


def augmented_depth(module: int, modules: int, depth: int, decay: float) -> int:
    """Return d_i = max(1, round((1 - t i / (K - 2)) d + t i / (K - 2))), i from 0 to K - 2: shallower later on."""
    share = decay * module / max(modules - 2, 1)
    return max(1, round((1.0 - share) * depth + share))
