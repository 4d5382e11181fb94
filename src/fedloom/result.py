"""The result of a run in Python: its numbers, its model, its report."""

from __future__ import annotations

import html
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedloom.core.config import Experiment
from fedloom.core.errors import UsageError
from fedloom.core.extras import needed_by
from fedloom.core.history import RoundRecord, RunSummary
from fedloom.core.python_objects import held
from fedloom.core.records import Array, Arrays
from fedloom.core.run_files import REPORT

if TYPE_CHECKING:
    import pandas as pd

    from fedloom.workloads.torch.types import Module

    M = TypeVar("M", bound=Module)
else:
    M = TypeVar("M")

_SHOWN = 4
"""Metrics in a result's `repr`."""
_HEIGHT_PX = 700
"""Height of a report in a notebook."""


class History(list[RoundRecord]):
    """One record per round, first to last; in a notebook a table."""

    def columns(self) -> dict[str, list[float | int | None]]:
        """Return the rounds' numbers as columns: `round`, held-out metrics by name, training metrics as `train_…`,
        `clients`, `failures`, `bytes_up`, `bytes_down`, `seconds`. None if a round has none."""
        tested = _names(record.evaluation or {} for record in self)
        trained = _names(record.metrics for record in self)
        return {
            "round": [record.round for record in self],
            **{name: [(record.evaluation or {}).get(name) for record in self] for name in tested},
            **{f"train_{name}": [record.metrics.get(name) for record in self] for name in trained},
            "clients": [len(record.cohort) for record in self],
            "failures": [len(record.failures) for record in self],
            "bytes_up": [record.traffic.bytes_up for record in self],
            "bytes_down": [record.traffic.bytes_down for record in self],
            "seconds": [record.timing.total_s for record in self],
        }

    def frame(self) -> pd.DataFrame:
        """Return `columns` as a pandas frame, a row for each round.

        Raises:
            PackageMissing: pandas is not installed; use `columns`.
        """
        with needed_by("history.frame() (or use history.columns())"):
            import pandas as pd
        return pd.DataFrame(self.columns()).set_index("round")

    def _repr_html_(self) -> str:
        columns = self.columns()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        rows = ("".join(f"<td>{_cell(value)}</td>" for value in row) for row in zip(*columns.values(), strict=True))
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


@dataclass(frozen=True)
class Report:
    """A run's report, a page that is shown in a notebook."""

    path: Path
    """The page's file."""

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r})"

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe sandbox srcdoc="{page}" style="width:100%;height:{_HEIGHT_PX}px;border:0"></iframe>'


@dataclass(frozen=True, kw_only=True, repr=False)
class RunResult:
    """A finished run."""

    summary: RunSummary
    history: History
    """One record per round, first to last; `history.frame()` is a pandas frame."""
    arrays: Arrays
    """The final global model, by array name."""
    run_dir: Path | None
    """The run's folder; None if nothing was written."""
    experiment: Experiment
    """What was run."""
    objects: object = None
    """The run's Python objects, if it was one of a model and data."""

    @property
    def metrics(self) -> dict[str, float]:
        """Return the last evaluation."""
        return self.summary.metrics

    @property
    def report(self) -> Report:
        """Return the run's report, which a notebook shows.

        Raises:
            UsageError: the run wrote no folder, or its report could not be written.
        """
        path = None if self.run_dir is None else self.run_dir / REPORT
        if path is None or not path.is_file():
            raise UsageError("the run has no report: it was run with keep=False, or its folder is gone")
        return Report(path)

    def load_into(self, model: M) -> M:
        """Set the weights of a PyTorch module to the final model's, on its device; returns it.

        Raises:
            ConfigError: the module has other arrays.
            BadUpdate: one of them has another shape or dtype.
        """
        from fedloom.workloads._base.loading import fill

        fill(model, self.arrays, "the run's final model")
        return model

    def predict(self, inputs: object) -> Array:
        """Return predictions of the final model, on the CPU.

        Args:
            inputs: examples without targets, as the model takes them, (n, …): an array, a tensor, a tuple of them for a
                model with several inputs, or a frame with the columns trained on. A `transform` is applied.

        Returns:
            The class of each example, (n,); for several labels 0 or 1 for each, for numbers the outputs, (n, …).

        Raises:
            ConfigError: the workload's model is no PyTorch module, or is adapters on a frozen one.
            PluginInvalid: the inputs are no arrays.
        """
        from fedloom.workloads._base.loading import predict

        with self._holding():
            return predict(self.experiment, self.arrays, inputs)

    def _holding(self) -> AbstractContextManager[None]:
        key = self.experiment.workload.objects_key()
        return held(key, self.objects) if key else nullcontext()

    def __repr__(self) -> str:
        shown = [f"{name} {value:.4g}" for name, value in list(self.metrics.items())[:_SHOWN]]
        where = [str(self.run_dir)] if self.run_dir is not None else []
        rounds = f"{self.summary.rounds} round{'' if self.summary.rounds == 1 else 's'}"
        return f"RunResult({', '.join([self.summary.name, rounds, *shown, *where])})"


def _names(rows: Iterable[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
