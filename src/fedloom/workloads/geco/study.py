"""What explanation bias contributes to studies: a column with interval for each explainer."""

from __future__ import annotations

from fedloom.reporting.study_part import NumberColumn, StudyPart
from fedloom.workloads.geco.monitor.report import TITLES


def build_study() -> StudyPart:
    """Contribute columns of the last network's mass accuracies."""
    return StudyPart(
        columns=(
            *(
                NumberColumn(
                    number=f"mass_accuracy_{name}", title=f"mass accuracy, {title}", interval=True, table="clients"
                )
                for name, title in TITLES.items()
            ),
            *(
                NumberColumn(number=f"mass_accuracy_gap_{name}", title=f"gap between versions, {title}", interval=True)
                for name, title in TITLES.items()
                if name in ("input_x_gradient", "integrated_gradients", "gradient_shap")
            ),
            NumberColumn(number="mass_accuracy_scored", title="sentences scored", digits=0),
        )
    )
