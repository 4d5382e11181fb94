"""The number of array elements a run sends, by formula, for comparison with the counts."""

from __future__ import annotations

from collections.abc import Iterable

from fedloom.strategies._low_rank.schedule import Schedule


def uplink(schedule: Schedule, full: int, head: int, shapes: Iterable[tuple[int, int]]) -> int:
    """Return the elements one client sends if it is sampled in every round: T_i·P + Σ_{t >= T_i} (c·r_t + P_head).

    Args:
        schedule: T, T_i and every r_t.
        full: elements of the whole model, P.
        head: elements of the head that is trained besides the adapters, P_head.
        shapes: (o, i) of each layer with an adapter; c = Σ (o + i).
    """
    width = sum(out + in_ for out, in_ in shapes)
    return schedule.initiating * full + sum(width * rank + head for rank in schedule.ranks)


def saving(schedule: Schedule, full: int, head: int, shapes: Iterable[tuple[int, int]]) -> float:
    """1 - C / C_FedAvg in uplink elements over all rounds, FedAvg sending whole models: at most 1 - T_i/T."""
    return 1.0 - uplink(schedule, full, head, shapes) / (schedule.rounds * full)
