"""Flower's strategies, unchanged: Krum, Bulyan, FedMedian, FedAdam, differential privacy, or your own class.

`as_strategy` is the other direction: a fedloom strategy in a Flower app.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedloom.strategies.flower import flwr_api as flwr


def as_strategy(
    name: str,
    *,
    fraction_train: float = 1.0,
    fraction_evaluate: float = 1.0,
    min_nodes: int = 2,
    seed: int = 1,
    weighted_by: str = "num-examples",
    **options: object,
) -> flwr.Strategy:
    """Make one of our strategies a Flower `Strategy` object, for use in a Flower app.

    Args:
        name: a fedloom strategy, such as `fedavg` or `server_opt`.
        fraction_train: fraction of the connected nodes sampled for training each round.
        fraction_evaluate: fraction sampled for evaluation.
        min_nodes: connected nodes to wait for before a round; also the minimum sampled.
        seed: root of the strategy's randomness, and of the choice of nodes.
        weighted_by: metric of the replies by which updates are weighted.
        options: settings of the strategy.

    Returns:
        A `flwr.serverapp.strategy.Strategy`; do not share it, it stores the run's state.

    Raises:
        UnknownName: no such strategy.
        ConfigError: a setting it does not have.
    """
    from fedloom.strategies.flower.export import OursInFlower

    return OursInFlower(
        name,
        options,
        fraction_train=fraction_train,
        fraction_evaluate=fraction_evaluate,
        min_nodes=min_nodes,
        seed=seed,
        weighted_by=weighted_by,
    )
