"""FFA-LoRA, the server half: the engine with one rank and one frozen A for all."""

from __future__ import annotations

from dataclasses import replace

from fedloom.core.config import Experiment
from fedloom.strategies._low_rank.engine import LowRank
from fedloom.strategies._low_rank.method import shared_method
from fedloom.strategies._low_rank.schedule import constant
from fedloom.strategies.ffa_lora.config import Config


def build_strategy(config: Config, experiment: Experiment) -> LowRank:
    """B' = Σ p_k B_k with A as it was drawn: Σ p_k B_k A = B' A, so the mean is exact; r·o elements go up.

    Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (ICLR 2024, arXiv 2403.12313).
    """
    method = shared_method(config, experiment, constant(experiment.rounds_known("strategy 'ffa_lora'"), config.rank))
    return LowRank(replace(method, aggregation="freeze_a"))
