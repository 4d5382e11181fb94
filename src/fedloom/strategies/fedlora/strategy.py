"""Federated LoRA, the server half: the engine with one rank and the mean of factors."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import shared_method
from fedloom.strategies._low_rank.schedule import constant
from fedloom.strategies.fedlora.config import Config


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """A' = Σ p_k A_k and B' = Σ p_k B_k at a fixed rank r, the base frozen.

    Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (arXiv 2305.05644).
    """
    method = shared_method(config, experiment, constant(experiment.rounds_known("strategy 'fedlora'"), config.rank))
    return LowRank(replace(method, client_ranks=config.client_ranks))
