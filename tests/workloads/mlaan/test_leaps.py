"""Which blocks make up modules, and which blocks auxiliary networks copy: against the released lists."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.workloads.mlaan import leap
from fedloom.workloads.mlaan.config import Config
from fedloom.workloads.mlaan.modes import mode, names

RESNET32 = {  # the lists of the released code for 15 modules, (stage, block)
    0: [(2, 0), (3, 0), (3, 2), (3, 4)],
    5: [(3, 0), (3, 2), (3, 3), (3, 4)],
    11: [(3, 2), (3, 3), (3, 4)],
    12: [(3, 3), (3, 4)],
    13: [(3, 4)],
}


def as_pairs(blocks: tuple[int, ...], per_stage: int) -> list[tuple[int, int]]:
    return [(block // per_stage + 1, block % per_stage) for block in blocks]


@pytest.mark.parametrize("last", RESNET32)
def test_the_rule_gives_the_released_lists_of_resnet_32(last: int) -> None:
    assert as_pairs(leap.leap_blocks(last, 3, 5, 4), 5) == RESNET32[last]


@pytest.mark.parametrize(("last", "entries"), [(0, [(2, 0), (3, 0)]), (17, [(2, 0), (3, 0)]), (18, [(3, 0)]), (40, [])])
def test_the_rule_gives_the_released_entries_and_last_block_of_resnet_110(
    last: int, entries: list[tuple[int, int]]
) -> None:
    found = as_pairs(leap.leap_blocks(last, 3, 18, 4), 18)
    assert [pair for pair in found if pair[1] == 0] == entries
    assert found[-1] == (3, 17) and len(found) == 4


@pytest.mark.parametrize("rule", ["leap", "next", "random"])
@pytest.mark.parametrize(("per_stage", "modules"), [(5, 15), (5, 8), (18, 54), (1, 3), (2, 2)])
def test_no_rule_copies_a_block_that_is_not_after_its_module(rule: leap.Rule, per_stage: int, modules: int) -> None:
    cut = leap.partition(3 * per_stage, modules)
    assert [block for module in cut for block in module] == list(range(3 * per_stage))
    lists = leap.chosen_blocks(rule, cut, 3, 4, np.random.Generator(np.random.PCG64(1)))
    assert len(lists) == modules - 1
    for module, blocks in zip(cut[:-1], lists, strict=True):
        assert blocks and all(block > module[-1] for block in blocks) and len(blocks) <= 4
        pairs = tuple(tuple(as_pairs((block,), per_stage)[0]) for block in blocks)
        # each copied block fits the channels of the one before it: the check of lists given by hand agrees
        leap.check_lists([pairs], [module, range(3 * per_stage - 1, 3 * per_stage)], 3)  # type: ignore[list-item]


def test_auglocal_samples_evenly_and_is_shallower_later() -> None:
    # round(l + (N - l - 1) i / d) for l = 2, N = 12, d = 3: 2 + 9 i / 3
    assert leap.augmented_blocks(2, 12, 3) == (5, 8, 11)
    # K = 10, d = 5, tau = 0.5: d_i = round(5 (1 - i/16) + i/16)
    assert [leap.augmented_depth(i, 10, 5, 0.5) for i in range(9)] == [round(5 - 4 * i / 16) for i in range(9)]


def test_windows_are_truncated_at_the_first_module() -> None:
    assert [list(leap.window(i, 3)) for i in range(4)] == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]
    assert list(leap.window(4, 3, first=4)) == [4]


def test_modes_are_bases_with_parts() -> None:
    assert len(names()) == 17
    found = mode("infopro_mlaan")
    assert (found.base, found.multilaminar, found.leap, found.is_local) == ("infopro", True, True, True)
    assert not mode("end_to_end").is_local and not mode("greedy").multilaminar


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"modes": ["dgl_mlan"]}, "did you mean 'dgl_mlaan'"),
        ({"modes": ["dgl", "dgl"]}, "different modes"),
        ({"net": {"depth": 33}}, r"expected 6n \+ 2"),
        ({"modules": 16}, "expected 1 to 15, the blocks of the network, got 16"),
        ({"modules": 4, "multilaminar": {"window": 5}}, "expected at most 4, the modules"),
        ({"multilaminar": {"independent": 0, "cascade": 0}}, "no module learns"),
        ({"modules": 3, "leap": {"blocks": [[[3, 0]]]}}, "expected 2 lists"),
        ({"modules": 2, "leap": {"blocks": [[[4, 0]]]}}, r"block \(4, 0\) is outside the network"),
        ({"modules": 2, "leap": {"blocks": [[[3, 5]]]}}, r"block \(3, 5\) is outside the network"),
        ({"modules": 2, "leap": {"blocks": [[[1, 0]]]}}, "rising blocks after the module's own last one"),
        ({"modules": 2, "leap": {"blocks": [[[3, 2]]]}}, r"put \(3, 0\) before it"),
        ({"fleet": [[2, 16]]}, r"expected \[a, b\] with 1 <= a <= b <= 15"),
        ({"fleet": [[3, 2]]}, "1 <= a <= b"),
        ({"modes": ["end_to_end"], "fleet": [[1, 3]]}, "cannot learn end to end"),
        ({"training": {"optimizer": "adamw"}}, "keep_momentum"),
        ({"training": {"precision": "bf16"}}, "expected 'float32'"),
        ({"modes": ["dgl", "greedy"], "training": {"clip_norm": 1.0}}, "would couple the 2 modes"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Experiment.parse({"rounds": 1, "strategy": "fedavg", "workload": {"name": "mlaan", **settings}})


def test_the_default_is_resnet_32_with_a_block_in_each_module() -> None:
    config = Config()
    assert config.num_modules == 15 and config.multilaminar.window == 3 and config.range_of(7) == (0, 15)
