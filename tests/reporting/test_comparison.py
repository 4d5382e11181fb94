from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedloom.core.errors import UsageError
from fedloom.reporting.comparison import Comparison, compare, print_comparison
from fedloom.reporting.comparison_page import render_comparison, write_picture


def rows(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    return {row.name: row.cells for row in (*comparison.results, *comparison.settings)}


def test_runs_stand_side_by_side(runs: Any) -> None:
    one = runs.make("fedavg", runs.learning(4, 10, 5, top=0.9), clients=10)
    two = runs.make("fedprox", runs.learning(8, 10, 5, top=0.5), settings={"strategy": {"name": "fedprox", "mu": 0.1}})
    found = rows(compare([one, two]))
    assert found["rounds"][0] in ("4 of 4", "4")
    assert found["sent down"] == ("40.0 kB", "80.0 kB")  # 5 clients x 2,000 bytes a round
    assert found["time"] == ("8.00 s", "16.0 s")
    assert found["missing updates"] == ("1", "2")
    assert found["strategy.name"] == ("fedavg", "fedprox")
    assert found["strategy.mu"] == ("\N{EN DASH}", "0.1")
    assert "workload.lr" not in found  # it does not differ
    assert float(found["accuracy"][0]) > float(found["accuracy"][1])


def test_the_round_of_the_final_model_is_named_if_a_run_took_its_best_one(runs: Any) -> None:
    one, two = (runs.make(name, runs.learning(4, 10, 5)) for name in ("one", "two"))
    assert "final model of round" not in rows(compare([one, two]))
    summary = json.loads((one / "summary.json").read_text(encoding="utf-8"))
    summary["best"] = {"round": 3, "metric": "accuracy", "value": 0.75, "stopped_early": False}
    (one / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert rows(compare([one, two]))["final model of round"] == ("3 (best accuracy: 0.7500)", "4 (last)")


def test_settings_that_cannot_change_a_result_come_last(runs: Any) -> None:
    def made(name: str, lr: int) -> Path:
        fleet = {"labels": {"site": name}}
        settings = {"name": name, "fleet": fleet, "workload": {"name": "x", "lr": lr}}
        return Path(runs.make(name, settings=settings))

    rows = compare([made("a", 1), made("b", 2)]).settings
    assert [row.name for row in rows] == ["workload.lr", "name", "fleet.labels.site"]


def test_runs_that_measured_different_things_are_compared_as_far_as_possible(runs: Any, tmp_path: Path) -> None:
    one = runs.make("a", [runs.round(1, [0], metrics={"loss": 1.0}, evaluation={"accuracy": 0.5})])
    two = runs.make("b", [runs.round(1, [0], metrics={"perplexity": 9.0})], summary=False)
    three = runs.make("c")
    comparison = compare([one, two, three])
    found = rows(comparison)
    nothing = "\N{EN DASH}"
    assert found["accuracy"] == ("0.5000", nothing, nothing)
    assert found["perplexity"] == (nothing, "9.0000 (training)", nothing)
    assert found["status"] == ("done", "unfinished", "done")
    document = write_picture(comparison, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not measured by b, c." in document


def test_the_picture_overlays_all_runs_and_loads_nothing(runs: Any, tmp_path: Path) -> None:
    folders = [runs.make(f"run-{index}", runs.learning(4, 10, 5)) for index in range(10)]
    document = write_picture(compare(folders), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "http:" not in document and "https:" not in document and "<script" not in document
    first = document[document.index("loss per round") :]
    first = first[: first.index("</figure>")]
    assert len(re.findall("<path ", first)) == 10
    assert "stroke-dasharray" in first  # the ninth run on share a colour, not a pattern
    assert all(f"run-{index}" in first for index in range(10))


def test_folders_of_one_name_are_distinguished(runs: Any) -> None:
    one, two = runs.make("a/run"), runs.make("b/run")
    assert compare([one, two]).labels == (str(one), str(two))


def test_names_are_escaped_in_the_page_and_on_the_screen(runs: Any, tmp_path: Path) -> None:
    one = runs.make("<b>x", [runs.round(1, [0])], settings={"name": "<script>[red]\x1b"})
    comparison = compare([one, runs.make("y")])
    document = write_picture(comparison, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in document and "<b>" not in document
    screen = io.StringIO()
    print_comparison(Console(file=screen, width=200), comparison)
    assert "[red]?" in screen.getvalue() and "\x1b" not in screen.getvalue()


def test_a_comparison_needs_two_different_runs(runs: Any, tmp_path: Path) -> None:
    run = runs.make()
    with pytest.raises(UsageError, match="at least two run folders, got 1"):
        compare([run])
    with pytest.raises(UsageError, match="given twice"):
        compare([run, run / "." / ""])
    with pytest.raises(UsageError, match=r"it has no experiment\.toml"):
        compare([run, tmp_path])


def test_the_picture_needs_a_place(runs: Any, tmp_path: Path) -> None:
    comparison = compare([runs.make("a"), runs.make("b")])
    with pytest.raises(UsageError, match="does not exist"):
        write_picture(comparison, tmp_path / "nowhere" / "page.html")
    with pytest.raises(UsageError, match="is a folder"):
        write_picture(comparison, tmp_path)


def test_runs_race_to_nine_tenths_of_what_the_first_ended_with(runs: Any) -> None:
    """The first run ends with 0.8 five times, so the target is 0.72; rounds, trainings and bytes until it is met."""

    def climbing(name: str, accuracy: list[float], trainings: int) -> Path:
        records = [
            runs.round(number, [0, 1], evaluation={"accuracy": value}, local_trainings=trainings)
            for number, value in enumerate(accuracy, 1)
        ]
        return Path(runs.make(name, records))

    first = climbing("random", [0.1, 0.5, 0.72, 0.8, 0.8, 0.8, 0.8, 0.8], trainings=2)
    quick = climbing("credit", [0.7, 0.75, 0.6], trainings=8)
    never = climbing("lowest", [0.1, 0.719], trainings=2)
    found = rows(compare([first, quick, never]))
    nothing = "\N{EN DASH}"
    assert found["to accuracy 0.7200: rounds"] == ("3", "2", nothing)
    assert found["to accuracy 0.7200: local trainings"] == ("6", "16", nothing)
    assert found["to accuracy 0.7200: sent"] == ("18.0 kB", "12.0 kB", nothing)  # 2 clients x 3,000 bytes a round
    assert found["local trainings"] == ("16", "24", "4")
    assert "0.9 of the mean of the first run&#x27;s last 5 evaluations" in render_comparison(
        compare([first, quick, never])
    )
