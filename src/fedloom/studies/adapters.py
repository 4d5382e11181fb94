"""What low-rank training saves, and how far clients drift apart, read out of one run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from fedloom.core.history import RoundRecord
from fedloom.reporting.run_folder import RunFolder

WHOLE = "initiating"
"""The stage whose rounds move whole models, unless they name a rank."""


def adapter_numbers(run: RunFolder) -> dict[str, float]:
    """Numbers of a run, NaN where one does not apply.

    Returns:
        `saving`: 1 - C / C_FedAvg, C being the elements sent up in all rounds and C_FedAvg those of whole models from
        the same clients. `saving_bound`: 1 - T_i/T, what it would be if adapters were free. `rank_rounds`: the sum of
        the ranks r_t. `aggregation_error`: mean over adapter rounds. `drift`: mean over the rounds with whole models
        of the root mean square of ‖w_k - w‖, w being the clients' mean; `drift_first`: in the first of them.
    """
    rounds = run.rounds
    size = _model_size(run)
    asked = size * sum(record.local_trainings for record in rounds)
    ranks = [record.info["rank"] for record in rounds if "rank" in record.info]
    whole = [record for record in rounds if is_whole(record)]
    drifts = [drift(record) for record in whole]
    return {
        "saving": 1.0 - sum(record.traffic.params_up for record in rounds) / asked if asked else math.nan,
        "saving_bound": 1.0 - (len(whole) if ranks or whole else len(rounds)) / len(rounds) if rounds else math.nan,
        "rank_rounds": float(sum(ranks)) if ranks else math.nan,
        "aggregation_error": _mean(record.info.get("aggregation_error", math.nan) for record in rounds),
        "drift": _mean(drifts),
        "drift_first": drifts[0] if drifts else math.nan,
    }


def is_whole(record: RoundRecord) -> bool:
    """Whether whole models travelled in a round of a low-rank strategy."""
    return record.info.get("stage") == WHOLE and "rank" not in record.info


def drift(record: RoundRecord) -> float:
    """Root mean square distance of the clients' models from their mean; NaN where the round does not tell.

    Σ p_k ‖w_k - w‖² = Σ p_k ‖w_k - a‖² - ‖w - a‖² for any a, here the round's anchor: clients tell the first term, the
    server the second. p_k is by examples.
    """
    apart = record.metrics.get("distance_squared", math.nan) - record.info.get("step_squared", math.nan)
    return math.sqrt(max(apart, 0.0)) if math.isfinite(apart) else math.nan


def _model_size(run: RunFolder) -> int:
    """Array elements of the whole model, P; 0 where the run never started."""
    started: Sequence[int] = [event["num_parameters"] for event in run.events if event.get("event") == "RunStarted"]
    return started[0] if started else 0


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan
