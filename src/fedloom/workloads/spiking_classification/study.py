"""Contributions of spiking networks to studies: their activity on held-out data."""

from __future__ import annotations

import math

import numpy as np

from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.study_part import Measured, NumberColumn, StudyPart

_MEANS = {"spikes": "spikes", "energy_pj": "energy_pj", "rate/output": "output_rate"}
"""Metrics of the evaluation whose mean over rounds is a number, and its name."""


def build_study() -> StudyPart:
    """Contribute the analysis `spiking`, and columns for its numbers."""
    return StudyPart(
        analyses={"spiking": spiking},
        columns=(
            NumberColumn(number="spikes", title="spikes per example", digits=0),
            NumberColumn(number="energy_pj", title="estimated energy per example, pJ", digits=0),
            NumberColumn(number="output_rate", title="output rate", digits=3),
            NumberColumn(number="dead_rounds", title="rounds with a dead layer", digits=1),
        ),
    )


def spiking(run: RunFolder) -> Measured:
    """Measure activity on held-out data: rates, spikes and estimated energy per example, and rounds with a dead layer.

    `dead_rounds` counts rounds in which some layer's mean rate was below the workload's floor.
    """
    evaluations = [record.evaluation or {} for record in run.rounds]
    numbers, series = {}, {}
    for name, label in _MEANS.items():
        values = [evaluation.get(name, math.nan) for evaluation in evaluations]
        if any(map(math.isfinite, values)):
            numbers[label] = float(np.nanmean(values))
            series[label] = values
    if any("dead" in evaluation for evaluation in evaluations):
        numbers["dead_rounds"] = float(sum(evaluation.get("dead", 0.0) > 0 for evaluation in evaluations))
    return Measured(numbers, series)
