"""One exchange as a phase of a round requests it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from fedloom.core.errors import FedloomError
from fedloom.core.records import Exchange
from fedloom.server.fleet.open_exchange import Answer, OpenExchange
from fedloom.server.rounds.closing import ClosingTerms

NoAnswer = Callable[[OpenExchange, Answer], FedloomError]
"""Makes the error for a group that failed on every node."""


class Phase(IntEnum):
    """Indices of exchanges within a round. They are part of keys and of clients' randomness, so they never change."""

    TRAIN = 0
    """The first exchange of a strategy; its next ones, and the collection of candidates' updates, count on from it."""
    EVALUATE = 1 << 16
    """Evaluation of the global model on held-out data; beyond any exchange of a strategy."""
    PROBE = (1 << 16) + 1
    """Measurement of candidates that do not train for it."""
    MONITOR = (1 << 16) + 2
    """A monitor's exchange with clients."""
    DESCRIBE = (1 << 16) + 3
    """Sites describe their data, before they are clients; further attempts count on from it."""
    FINE_TUNE = 1 << 17
    """Evaluation of the global model after local training on each site."""
    LOCAL_MODELS = (1 << 17) + 1
    """Sites that share their models send them."""
    CROSS_SITES = (1 << 17) + 2
    """Evaluation of a site's model at every site; those of further sites count on from it, by client."""
    ON_CLIENTS = (1 << 16) + (1 << 15)
    """Evaluation of the global model on each virtual client's own data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeRequest:
    """Work for clients, and its quota."""

    round: int
    index: int
    """`Phase.TRAIN + n`, or another phase."""
    exchange: Exchange
    terms: ClosingTerms
    group_size: int | None = None
    """Clients per group; None takes the run's."""
    emit_progress: bool = True
    """Whether events report the number of finished clients, and failures."""
    no_answer: NoAnswer | None = None
    """Makes the error to raise for the first missing result, in place of the quorum's."""
