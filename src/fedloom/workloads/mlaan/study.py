"""Contributions of learning module by module to studies: columns for the numbers of `report.py`."""

from __future__ import annotations

from fedloom.reporting.study_part import NumberColumn, StudyPart


def build_study() -> StudyPart:
    """Contribute columns of memory and time, and their ratios to the reference's."""
    return StudyPart(
        columns=(
            NumberColumn(number="activation_bytes", title="activations of a step, bytes", digits=0),
            NumberColumn(number="parameter_bytes", title="weights trained, bytes", digits=0),
            NumberColumn(number="optimizer_bytes", title="gradients and momentum, bytes", digits=0),
            NumberColumn(number="epoch_seconds", title="seconds per epoch", digits=2),
            NumberColumn(number="least_client_bytes", title="activations, smallest client", digits=0),
            NumberColumn(number="most_client_bytes", title="activations, largest client", digits=0),
        ),
        ratios=frozenset({"activation_bytes", "parameter_bytes", "optimizer_bytes", "epoch_seconds"}),
    )
