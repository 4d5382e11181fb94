"""Rank by round: the initiating rounds, a heating plateau, the decrease, the cooled end.

Symbols: T rounds, T_i initiating ones, L = T - T_i; heating share h, cooling share c; ranks r_max and r_min. Rounds
count from 1 here. All of it is a reconstruction from the abstract of SA-FedLoRA (Yang et al., arXiv 2405.09394 v1); its
body could not be read. The abstract says that the budget starts high ("heating") and is shrunk gradually to a "cooling"
end, but not the law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedloom.core.errors import ConfigError

Law = Literal["cubic", "geometric", "cosine", "linear", "step"]
Order = Literal["falling", "rising", "level"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The rank r_t of every round.

    With n_h = ⌊h·L + ½⌋, n_c = ⌊c·L + ½⌋ and i the rounds of the annealing stage gone by: r_t is r_max for i < n_h,
    r_min for i >= L - n_c, and in between max(r_min, ⌊ρ(u) + ½⌋) with u = (i - n_h + 1) / (L - n_h - n_c + 1).
    """

    rounds: int
    """T."""
    initiating: int = 0
    """T_i."""
    rank_max: int
    rank_min: int
    law: Law = "cubic"
    heating: float = 0.0
    """h."""
    cooling: float = 0.0
    """c."""
    step_rounds: int = 1
    """Rounds between two steps of the law `step`."""
    step_factor: float = 0.5
    """Factor of the rank at a step of the law `step`."""
    order: Order = "falling"
    """`falling` anneals. Controls: `rising` is the same ranks in reverse order, `level` the same total of ranks spread
    as evenly as whole ranks allow."""

    def __post_init__(self) -> None:
        if self.rank_min > self.rank_max:
            raise ConfigError(
                f"strategy.rank_min: {self.rank_min} is above strategy.rank_max = {self.rank_max}; ranks fall from "
                "rank_max to rank_min"
            )
        if self.initiating > self.rounds:
            raise ConfigError(
                f"strategy.initiating_rounds: {self.initiating} of rounds = {self.rounds}; expected at most all of them"
            )
        if self._heated + self._cooled > self._length:
            raise ConfigError(
                f"strategy.heating and strategy.cooling: {self._heated} rounds at rank_max and {self._cooled} at "
                f"rank_min do not fit into the {self._length} rounds after the initiating ones. Lower one of them, or "
                "raise rounds"
            )

    def is_initiating(self, round: int) -> bool:
        """Return whether a round is in the initiating stage."""
        return round <= self.initiating

    def rank(self, round: int) -> int:
        """r_t of a round of the annealing stage."""
        return self.ranks[round - 1 - self.initiating]

    @property
    def ranks(self) -> tuple[int, ...]:
        """r_t of every round of the annealing stage, in order."""
        falling = tuple(self._falling(i) for i in range(self._length))
        match self.order:
            case "falling":
                return falling
            case "rising":
                return falling[::-1]
            case "level":
                low, extra = divmod(sum(falling), len(falling)) if falling else (0, 0)
                return (low + 1,) * extra + (low,) * (self._length - extra)

    @property
    def _length(self) -> int:
        return self.rounds - self.initiating

    @property
    def _heated(self) -> int:
        return math.floor(self.heating * self._length + 0.5)

    @property
    def _cooled(self) -> int:
        return math.floor(self.cooling * self._length + 0.5)

    def _falling(self, i: int) -> int:
        if i < self._heated:
            return self.rank_max
        if i >= self._length - self._cooled:
            return self.rank_min
        u = (i - self._heated + 1) / (self._length - self._heated - self._cooled + 1)
        rho = self._law(u, drops=(i - self._heated) // self.step_rounds + 1)
        return max(self.rank_min, math.floor(rho + 0.5))

    def _law(self, u: float, drops: int) -> float:
        """ρ at the share u of the way down, 0 < u < 1."""
        high, low = self.rank_max, self.rank_min
        match self.law:
            case "cubic":  # the budget of AdaLoRA (Zhang et al. 2023) between its warm-up and its final phase
                return low + (high - low) * (1 - u) ** 3
            case "geometric":  # the cooling law T <- alpha T of simulated annealing
                return float(high * (low / high) ** u)
            case "cosine":
                return low + (high - low) * 0.5 * (1 + math.cos(math.pi * u))
            case "linear":
                return low + (high - low) * (1 - u)
            case "step":
                return float(high * self.step_factor**drops)


def constant(rounds: int, rank: int) -> Schedule:
    """Return a schedule with one rank for all rounds."""
    return Schedule(rounds=rounds, rank_max=rank, rank_min=rank)
