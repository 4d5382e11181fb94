"""The ranks round by round, and what they save."""

from itertools import pairwise
from typing import Any

import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.strategies._low_rank.saving import saving, uplink
from fedloom.strategies._low_rank.schedule import Law, Schedule, constant
from fedloom.strategies.sa_fedlora.config import Config
from fedloom.strategies.sa_fedlora.strategy import build_strategy, schedule_of

LAWS: tuple[Law, ...] = ("cubic", "geometric", "cosine", "linear", "step")


def reference(**changes: Any) -> Schedule:
    """The setting of the reference vectors: T = 20, T_i = 2, h = 0.1, c = 0.2, 8 -> 2."""
    values = {"rounds": 20, "initiating": 2, "rank_max": 8, "rank_min": 2, "heating": 0.1, "cooling": 0.2}
    return Schedule(**{**values, **changes})


@pytest.mark.parametrize(
    ("law", "want"),
    [
        ("cubic", [8, 8, 7, 6, 5, 4, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2]),
        ("geometric", [8, 8, 7, 6, 6, 5, 5, 4, 4, 3, 3, 3, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_the_reference_vectors(law: Law, want: list[int]) -> None:
    schedule = reference(law=law)
    assert [schedule.is_initiating(round) for round in range(1, 21)] == [True] * 2 + [False] * 18
    assert [schedule.rank(round) for round in range(3, 21)] == list(schedule.ranks) == want


def test_the_reference_sums() -> None:
    assert [sum(reference(law=law).ranks) for law in LAWS[:4]] == [65, 74, 84, 84]
    assert sum(reference(rank_min=8).ranks) == 144


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("rounds", "initiating"), [(20, 2), (50, 3), (7, 0), (100, 6)])
def test_ranks_never_rise_and_keep_both_ends(law: Law, rounds: int, initiating: int) -> None:
    schedule = reference(rounds=rounds, initiating=initiating, law=law, rank_max=16, step_rounds=3)
    ranks, cooled = schedule.ranks, int(0.2 * (rounds - initiating) + 0.5)
    assert ranks[0] == 16 and ranks[-cooled:] == (2,) * cooled
    assert all(a >= b for a, b in pairwise(ranks)) and set(ranks) <= set(range(2, 17))


def test_a_step_drops_by_its_factor() -> None:
    ranks = reference(law="step", rank_max=16, step_rounds=3, step_factor=0.5).ranks
    assert ranks == (16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2)


def test_the_controls_spend_the_same_total() -> None:
    falling, rising, level = (reference(order=order).ranks for order in ("falling", "rising", "level"))
    assert rising == falling[::-1] and sum(level) == sum(falling) == 65
    assert level == (4,) * 11 + (3,) * 7  # 65 = 11 * 4 + 7 * 3
    assert constant(5, 3).ranks == (3,) * 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank_min": 9}, "rank_min: 9 is above strategy.rank_max = 8"),
        ({"heating": 0.6, "cooling": 0.6}, "11 rounds at rank_max and 11 at rank_min do not fit into the 18 rounds"),
        ({"initiating": 21}, "21 of rounds = 20"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        reference(**changes)


@pytest.mark.parametrize("rank", ["rank_max", "rank_min"])
def test_rank_zero_is_refused(rank: str) -> None:
    experiment = {"rounds": 5, "workload": "text_classification"}
    with pytest.raises(ConfigError, match=rf"strategy.{rank}: .*greater than or equal to 1, got 0"):
        Experiment.parse({**experiment, "strategy": {"name": "sa_fedlora", rank: 0}})


def test_the_initiating_stage_is_six_per_cent_of_the_rounds_rounded_up() -> None:
    assert [schedule_of(Config(), rounds).initiating for rounds in (20, 50, 51, 100)] == [2, 3, 4, 6]
    assert schedule_of(Config(initiating_rounds=0), 50).initiating == 0


def test_settings_that_exclude_each_other_are_refused() -> None:
    experiment = Experiment.parse({"rounds": 5, "strategy": "sa_fedlora", "workload": "text_classification"})
    for changes, words in (
        ({"init_mode": "lora", "anchor": "pretrained"}, 'expected "global"'),
        ({"aggregation": "freeze_a", "client_ranks": (2, 4)}, "cannot share one frozen A"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_strategy(Config.model_validate(changes), experiment)


QUERY_VALUE = [(384, 384)] * 12
ALL_LINEAR = ([(384, 384)] * 4 + [(1536, 384), (384, 1536)]) * 6
MINILM, HEAD = 22_713_216, 3_850
"""Elements of all-MiniLM-L6-v2 as it is published, pooler included; a 10-way head on 384 features."""


@pytest.mark.parametrize(
    ("rounds", "initiating", "shapes", "per_cent"),
    [
        (50, 3, QUERY_VALUE, 93.760),
        (50, 3, ALL_LINEAR, 92.976),
        (100, 6, QUERY_VALUE, 93.765),
        (20, 0, QUERY_VALUE, 99.754),
    ],
)
def test_the_uplink_saving_on_minilm(
    rounds: int, initiating: int, shapes: list[tuple[int, int]], per_cent: float
) -> None:
    schedule = schedule_of(Config(initiating_rounds=initiating), rounds)
    saved = saving(schedule, MINILM + HEAD, HEAD, shapes)
    assert round(100 * saved, 3) == per_cent
    assert saved <= 1 - initiating / rounds
    by_hand = initiating * (MINILM + HEAD)
    for rank in schedule.ranks:
        by_hand += HEAD + sum(rank * out + rank * in_ for out, in_ in shapes)
    assert uplink(schedule, MINILM + HEAD, HEAD, shapes) == by_hand


def test_the_ranks_of_the_default_budget_sum_to_276() -> None:
    assert sum(schedule_of(Config(), 50).ranks) == 276  # a fixed rank of 16 would be 752
