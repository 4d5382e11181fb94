"""`fedloom compare --chart`: one metric of several runs as an SVG file of its own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from fedloom.core.errors import UsageError
from fedloom.reporting.chart_file import write_chart
from fedloom.reporting.comparison import Comparison, compare

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def two(runs: Any) -> Comparison:
    one = runs.make("fed<avg>", [runs.round(at, [0], evaluation={"loss": 2.0, "accuracy": at / 4}) for at in (1, 2, 3)])
    other = runs.make("prox", [runs.round(at, [0], evaluation={"loss": 1.0, "accuracy": 0.5}) for at in (1, 2)])
    return compare([one, other])


def drawn(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()


def heights(picture: ElementTree.Element) -> list[list[float]]:
    """Return the vertical positions of each line's points."""
    return [
        [float(y) for y in re.findall(r" ([\d.]+)(?=L|$)", path.get("d", ""))] for path in picture.iter(f"{SVG}path")
    ]


def test_the_lines_have_the_shape_of_the_values(two: Comparison, tmp_path: Path) -> None:
    picture = drawn(write_chart(two, tmp_path / "a.svg", None, "rounds"))
    rising, flat = heights(picture)
    assert rising[0] - rising[1] == pytest.approx(rising[1] - rising[2], abs=0.2)  # 1/4, 2/4, 3/4, upwards
    assert rising[0] > rising[1] == flat[0] == flat[1]  # the second is 0.5 throughout, as the first in round 2
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert texts[:3] == ["accuracy", "fed<avg>", "prox"]
    assert "round" in texts


def test_metric_and_cost_are_chosen(two: Comparison, tmp_path: Path) -> None:
    picture = drawn(write_chart(two, tmp_path / "a.svg", "loss", "megabytes"))
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert texts[0] == "loss"
    assert any(text and text.startswith("MB sent so far") for text in texts)


@pytest.mark.parametrize(
    ("name", "metric", "along", "said"),
    [
        ("a.png", None, "rounds", r"a file name that ends in \.svg"),
        ("no/a.svg", None, "rounds", "folder .* does not exist"),
        ("a.svg", "acuracy", "rounds", "did you mean 'accuracy'"),
        ("a.svg", None, "trainings", "none of the runs counted any"),
        ("a.svg", None, "bytes", "expected one of rounds, megabytes, trainings, seconds"),
    ],
)
def test_a_wrong_wish_is_named(
    two: Comparison, tmp_path: Path, name: str, metric: str | None, along: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        write_chart(two, tmp_path / name, metric, along)
    assert not list(tmp_path.glob("*.svg"))


def test_runs_without_a_measurement_have_no_chart(runs: Any, tmp_path: Path) -> None:
    silent = [runs.make(name, [runs.round(1, [0], metrics={}, evaluation=None)]) for name in ("one", "two")]
    with pytest.raises(UsageError, match="none of the runs has measured anything"):
        write_chart(compare(silent), tmp_path / "a.svg", None, "rounds")
