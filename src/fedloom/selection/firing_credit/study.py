"""Credits in studies: whether they follow new classes, and a test of them without a federation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from fedloom.core.config import Experiment
from fedloom.core.history import RoundRecord
from fedloom.core.ranks import spearman
from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.study_part import Measured, NumberColumn, StaticTest, StudyPart
from fedloom.selection._choosing.balance import total_variation


def build_study() -> StudyPart:
    """Contribute the analysis `novelty`, the test `unseen`, and a column."""
    return StudyPart(
        analyses={"novelty": novelty},
        tests={"unseen": Unseen},
        columns=(
            NumberColumn(number="novelty", title="credit against novelty", digits=2, table="clients", interval=True),
        ),
    )


def novelty(run: RunFolder) -> Measured:
    """Measure whether credits follow new classes: mean over rounds of Spearman(kappa_k, TV(q_k, p)) over candidates.

    kappa_k is the credit candidate k reported, q_k its label shares, p those of the pool of the clients aggregated in
    the round before. Rounds whose credits (or distances) are all equal have no rank correlation and are omitted.
    """
    counts = run.label_counts
    if counts is None:
        return Measured()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    values = [math.nan]
    for before, record in itertools.pairwise(run.rounds):
        credits = _credits(record)
        pool = counts[before.cohort].sum(axis=0)
        apart = total_variation(shares[list(credits)], pool / max(pool.sum(), 1.0))
        values.append(spearman(list(credits.values()), apart) if len(credits) > 1 else math.nan)
    seen = [value for value in values if math.isfinite(value)]
    return Measured({"novelty": float(np.mean(seen)) if seen else math.nan}, {"novelty": values})


class Unseen(StaticTest):
    """A test of credits next to the runs: do they identify clients whose classes a model has never seen?"""

    seen: Annotated[int, Field(ge=1)] = 5
    """Classes the model is trained on, drawn by seed."""
    passes: Annotated[int, Field(ge=1)] = 5
    """Training on all data of the seen classes, in numbers of local trainings."""
    share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Fraction of unseen classes above which a client should be identified."""

    def measure(self, experiment: Experiment) -> Mapping[str, float]:
        from fedloom.selection.firing_credit.unseen import separations

        return separations(experiment, seen=self.seen, passes=self.passes, share=self.share)


def _credits(record: RoundRecord) -> dict[int, float]:
    """Return the candidates' claimed credits, by client; empty if they reported none."""
    found = {int(client): reported.get("credit") for client, reported in record.probe.items()}
    return {client: float(value) for client, value in found.items() if isinstance(value, int | float)}
