"""What q-FedAvg contributes to studies: columns for the numbers of `report.py`, and an analysis of its own."""

from __future__ import annotations

from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.study_part import Measured, NumberColumn, StudyPart


def build_study() -> StudyPart:
    """Contribute `fairness` to `analyses`, and columns to the tables."""
    return StudyPart(
        analyses={"fairness": fairness},
        columns=(
            NumberColumn(number="worst_loss", title="worst client's loss", difference=True),
            NumberColumn(number="loss_spread", title="standard deviation of losses"),
            NumberColumn(number="monitored_gap", title="worst minus mean, all clients", interval=True),
        ),
        ratios=frozenset({"worst_loss"}),
    )


def fairness(run: RunFolder) -> Measured:
    """Read what the monitor `qffl` saw: how far the worst of all clients is above their mean, at the end."""
    seen = [record.monitor for record in run.rounds if record.monitor]
    gaps = [float(each["worst"] - each["mean"]) for each in seen]
    return Measured({"monitored_gap": gaps[-1]} if gaps else {}, {"monitored_gap": gaps} if gaps else {})
