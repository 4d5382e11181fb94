"""A metric that is no number is reported at once, in the summary, and by the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from fedloom import api
from fedloom.cli.app import main
from fedloom.core.config import Experiment
from fedloom.core.events import Notice
from fedloom.server.rounds.record import not_finite
from fedloom.testing.fleet import EventLog

Make = Callable[..., Experiment]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ({"loss": 1.0, "accuracy": 0.0}, ()),
        ({"loss": NAN, "accuracy": 0.1}, ("loss",)),
        ({"loss": INF, "perplexity": INF}, ("loss", "perplexity")),
        ({"loss": 800.0, "perplexity": INF}, ()),
        ({"z": -INF, "a": NAN}, ("a", "z")),
    ],
)
def test_exponentials_of_a_finite_metric_may_overflow(values: Mapping[str, float], odd: tuple[str, ...]) -> None:
    assert not_finite(values, {"perplexity": "loss"}) == odd


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_it_is_said_in_the_round_it_happens_and_in_the_summary(linear: Make) -> None:
    log = EventLog()
    experiment = linear(rounds=1, workload={"learning_rate": 1e20, "steps": 1})
    result = api.run(experiment, keep=False, sinks=[log])
    first = next(n for n, record in enumerate(result.history, 1) if not np.isfinite(record.evaluation["loss"] or NAN))  # type: ignore[index]
    reported = [event.message for event in log.events if isinstance(event, Notice)]
    assert reported[0].startswith(f"round {first}: loss (evaluation)") and "not finite (NaN or infinite)" in reported[0]
    assert result.summary.status == "done" and result.summary.not_finite == ("loss",)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize(("rate", "code"), [("1e20", 1), ("0.1", 0)])
def test_the_exit_status_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: str, code: int) -> None:
    (tmp_path / "e.toml").write_text(
        'rounds = 1\nclients = 4\nstrategy = "fedavg"\n[workload]\nname = "fedloom.testing.linear"\nsteps = 1\n'
        f"learning_rate = {rate}\n",
        encoding="utf-8",
    )
    assert main(["run", str(tmp_path / "e.toml"), "--runtime", "inline", "--out", str(tmp_path / "r")]) == code
    reported = capsys.readouterr().err
    assert ("its last evaluation has no finite value of loss" in reported) == bool(code)
    summary = json.loads((tmp_path / "r" / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "done" and summary["not_finite"] == (["loss"] if code else [])
