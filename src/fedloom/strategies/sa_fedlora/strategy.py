"""SA-FedLoRA, the server half: which rounds are of which stage, and with which rank. The engine does the rounds."""

from __future__ import annotations

import math
from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.strategies._low_rank.aggregation import AGGREGATIONS
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import Initiating, shared_method
from fedloom.strategies._low_rank.resizing import Cut
from fedloom.strategies._low_rank.schedule import Schedule
from fedloom.strategies.sa_fedlora.config import Config


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """Initiating stage, then annealing.

    A reconstruction from the abstract of "SA-FedLoRA: Adaptive Parameter Allocation for Efficient Federated Learning
    with LoRA Tuning" (Yang et al., arXiv 2405.09394 v1).

    Raises:
        ConfigError: the schedule does not fit the run, or settings exclude each other.
    """
    if config.init_mode == "lora" and config.anchor == "pretrained":
        raise ConfigError(
            'strategy.anchor: "pretrained" is for whole models; with init_mode = "lora" expected "global"'
        )
    method = shared_method(config, experiment, schedule_of(config, experiment.rounds_known("strategy 'sa_fedlora'")))
    return LowRank(
        replace(
            method,
            initiating=Initiating(
                whole=config.init_mode == "full", mu=config.init_mu, to_pretrained=config.anchor == "pretrained"
            ),
            resizing=Cut(method.setup, config.shrink, config.allocation),
            aggregation=AGGREGATIONS[config.aggregation](method.setup),
        )
    )


def schedule_of(config: Config, rounds: int) -> Schedule:
    """Return the ranks of a run of T = `rounds` rounds."""
    given = config.initiating_rounds
    return Schedule(
        rounds=rounds,
        initiating=math.ceil(config.initiating_fraction * rounds - 1e-9) if given is None else given,
        rank_max=config.rank_max,
        rank_min=config.rank_min,
        law=config.law,
        heating=config.heating,
        cooling=config.cooling,
        step_rounds=config.step_rounds,
        step_factor=config.step_factor,
        order=config.order,
    )
