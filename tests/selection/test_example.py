"""The example of the how-to guide: it loads as a file, runs, and does what it says."""

from pathlib import Path

import numpy as np
import pytest
from selecting import Reports, probed

from fedloom.api import run
from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.protocols import Roster
from fedloom.core.records import MODEL, Record, Update
from fedloom.core.seeds import generator

EXAMPLES = Path(__file__).parents[2] / "examples"
NAME = str(EXAMPLES / "take_turns.py")


def test_turns_go_around_and_the_worst_served_are_kept(reports: Reports) -> None:
    parts = registry.part("selection", NAME, "selection")
    selection = parts.build_selection(parts.Config(name=NAME, window=3))
    roster = Roster(population=4)
    state = selection.init(roster)
    assert probed(selection, state, roster, 2, generator(1)).candidates == (0, 1, 2)
    reported = reports([0, 1, 2], losses=[0.5, 2.0, 1.0])
    assert selection.choose(state, roster, 2, generator(1), reported) == (1, 2)
    assert probed(selection, selection.observe(state, []), roster, 2, generator(1)).candidates == (3, 0, 1)
    with pytest.raises(ConfigError, match="window: 3 clients for a cohort of 4"):
        selection.probe(state, roster, 4, generator(1))
    with pytest.raises(ConfigError, match="window: 3 clients, but there are only 2"):
        selection.init(Roster(population=2))


def test_it_runs_with_a_strategy_that_knows_nothing_of_it() -> None:
    settings = {
        "rounds": 3,
        "clients": 12,
        "cohort": 3,
        "strategy": {"name": "fedavg"},
        "workload": {"name": str(EXAMPLES / "linear_regression.py")},
        "selection": {"name": NAME, "window": 6},
        "runtime": {"name": "inline"},
    }
    result = run(Experiment.parse(settings), keep=False)
    assert [sorted(record.candidates) for record in result.history] == [[*range(6)], [*range(6, 12)], [*range(6)]]
    assert all(len(record.cohort) == 3 for record in result.history)
    assert result.metrics["loss"] < (result.history[0].evaluation or {})["loss"]


def test_the_guides_measure_is_the_distance() -> None:
    guide = (EXAMPLES.parent / "docs" / "how-to" / "add-a-selection.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    (text,) = [block for block in guide.split("```python\n") if block.startswith("def how_far")]
    exec(text.split("```")[0], scope)  # the guide's own text
    before, after = {"w": np.zeros(2), "b": np.zeros(())}, {"w": np.array([3.0, 0.0]), "b": np.array(4.0)}
    update = Update(num_examples=1, groups={MODEL: after})
    measure = scope["build_measure"]()  # type: ignore[operator]
    assert measure(None, Record({MODEL: before}), update, None, generator(1), {}) == {"distance": 5.0}
