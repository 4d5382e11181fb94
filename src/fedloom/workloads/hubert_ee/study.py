"""What early-exit recognition contributes to studies: columns for the numbers of its reports."""

from __future__ import annotations

from fedloom.reporting.study_part import NumberColumn, StudyPart


def build_study() -> StudyPart:
    """Contribute columns of word errors, depth and time."""
    return StudyPart(
        columns=(
            NumberColumn(number="wer", title="word error rate", digits=3, interval=True),
            NumberColumn(number="wer_full_depth", title="at full depth", digits=3, interval=True),
            NumberColumn(number="wer_first_exit", title="at the first exit", digits=3),
            NumberColumn(number="wer_last_branch", title="at the last branch", digits=3),
            NumberColumn(number="mean_exit_layer", title="mean exit layer", digits=2),
            NumberColumn(number="saved_share", title="CPU time saved", digits=3),
            NumberColumn(number="first_exit_auroc", title="AUROC of -H, first exit", digits=3),
            NumberColumn(number="noise_spearman", title="noise against exit", digits=3),
        ),
    )
