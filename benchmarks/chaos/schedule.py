"""What goes wrong and when, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedloom.core.seeds import generator

ROUNDS = 6
NODES = ("north", "east", "south")
SERVER = "server"
HOSTILE = "west"
"""Name of the node that is not honest, in schedules that have one."""

KINDS = ("kill server", "kill node", "cut", "slow", "full disk", "clock")
"""Faults with a moment."""
LIES = ("wrong shapes", "not a number", "other clients", "replays", "floods")
"""What a hostile node does, all the time it is there."""
_WEIGHTS = (0.25, 0.25, 0.2, 0.12, 0.08, 0.1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing going wrong."""

    kind: str
    target: str
    """`server` or a node's name."""
    round: int
    """It begins when so many rounds are done."""
    delay_s: float
    """And so much later."""
    lasts_s: float = 0.0
    """Seconds until it is put right: the program started again, the link mended, room made on the disk."""
    amount: float = 0.0
    """Seconds a clock jumps; kilobits a second a slow link carries."""

    def __str__(self) -> str:
        size = {"clock": f" {self.amount:+.0f} s", "slow": f" {self.amount:.0f} kbit/s"}.get(self.kind, "")
        where = "" if self.kind in ("kill server", "full disk") else f" {self.target}"
        return f"{self.kind.removesuffix(' node')}{where}{size} @{self.round}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A run's bad luck."""

    seed: int
    index: int
    members: bool
    """Mutual TLS and no shared memory, or a shared secret and the host's memory."""
    noise: bool = False
    """Whether the nodes' messages are dropped, repeated and delayed."""
    lie: str = ""
    """What the hostile node does; empty where all are honest."""
    faults: tuple[Fault, ...] = field(default=())

    def __str__(self) -> str:
        reported = [str(fault) for fault in self.faults]
        reported += ["messages lost, repeated, late"] if self.noise else []
        reported += [f"a node {_VERBS.get(self.lie, self.lie)}"] if self.lie else []
        return "; ".join(reported)


_VERBS = {"wrong shapes": "lies about shapes", "not a number": "sends NaN", "other clients": "answers for others"}


def draw(seed: int, index: int) -> Schedule:
    """The schedule of this number: one to three faults, and noise or a hostile node in some."""
    rng = generator(seed, "chaos", index)
    members, noise, hostile = bool(rng.random() < 0.5), bool(rng.random() < 0.3), bool(rng.random() < 0.4)
    faults = sorted(
        (_fault(str(rng.choice(KINDS, p=_WEIGHTS)), rng) for _ in range(int(rng.integers(1, 4)))),
        key=lambda fault: (fault.round, fault.delay_s),
    )
    once = [f for i, f in enumerate(faults) if f.kind != "full disk" or "full disk" not in [g.kind for g in faults[:i]]]
    lie = str(rng.choice(LIES)) if hostile else ""
    return Schedule(
        seed=seed,
        index=index,
        # Who shares the server's memory is trusted as itself, so liars meet a server with members.
        members=members or bool(lie),
        noise=noise,
        lie=lie,
        faults=tuple(once),
    )


def _fault(kind: str, rng: np.random.Generator) -> Fault:
    node = str(rng.choice(NODES))
    at, delay_s = int(rng.integers(0, ROUNDS)), round(float(rng.uniform(0.0, 0.25)), 3)
    lasts_s, amount = round(float(rng.uniform(0.1, 0.8)), 3), 0.0
    target = SERVER if kind in ("kill server", "full disk") else node
    if kind == "clock":
        target = SERVER if rng.random() < 0.6 else node
        amount = float(rng.choice([-1, 1]) * rng.choice([30, 3600, 86400 * 20]))
    elif kind == "slow":
        amount, lasts_s = float(rng.choice([500, 2000, 8000])), round(float(rng.uniform(0.5, 2.0)), 3)
    return Fault(kind=kind, target=target, round=at, delay_s=delay_s, lasts_s=lasts_s, amount=amount)
