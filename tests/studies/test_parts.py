"""What plug-ins contribute to studies: found by name in installed packages and in files, never listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedloom.core import registry
from fedloom.core.errors import ConfigError, PluginInvalid
from fedloom.core.kinds import Kind
from fedloom.core.registry import PartRef
from fedloom.studies import api
from fedloom.studies.definition import Definition
from fedloom.studies.grid import expand
from fedloom.studies.parts import StudyParts

PART = """
from fedloom.reporting.study_part import Measured, NumberColumn, StaticTest, StudyPart
from fedloom.selection.uniform.config import Config
from fedloom.selection.uniform.selection import build_selection

def taste(run):
    return Measured({"sweetness": float(len(run.rounds)) + run.experiment["seed"]})

class Smell(StaticTest):
    strength: int = 1

    def measure(self, experiment):
        return {"smell": float(self.strength * experiment.seed), "none": float("nan")}

def build_study():
    columns = (
        NumberColumn(number="sweetness", title="how <sweet>", digits=1, difference=True),
        NumberColumn(number="smell", title="how strong", table="clients", interval=True),
        NumberColumn(number="sourness", title="how sour"),
    )
    return StudyPart(analyses={"taste": taste}, tests={"smell": Smell}, columns=columns,
                     ratios=frozenset({"sweetness"}))
"""
Study = Callable[..., dict[str, Any]]


@pytest.fixture
def tasting(study: Study, tmp_path: Path) -> Study:
    """A study whose arm `many` chooses clients by a file that contributes to studies."""
    file = tmp_path / "tasty.py"
    file.write_text(PART, encoding="utf-8")

    def make(**changes: Any) -> dict[str, Any]:
        arms = {"few": {"change": {"cohort": 2}}, "many": {"change": {"selection": str(file)}}}
        return study(**{"arms": arms, "analyses": ["taste"], **changes})

    return make


def test_a_file_contributes_as_a_folder_does(tasting: Study, tmp_path: Path) -> None:
    tests = {"smell": {"arm": "many", "strength": 3}}
    path = tmp_path / "little.toml"
    path.write_text(tomli_w.dumps(tasting(tests=tests)), encoding="utf-8")
    result, page = api.run(path, out=tmp_path / "out", jobs=1)
    assert not result.failures
    arms = result.scenarios["base"].arms
    # Three rounds, seeds 5 and 6; the strength is 3.
    assert arms["many"].estimates["sweetness"].value == 3 + 5.5
    assert arms["many"].estimates["sweetness_ratio"].value == 1.0
    assert arms["many"].estimates["smell"].value == 3 * 5.5
    assert "smell" not in arms["few"].estimates and "none" not in arms["many"].estimates
    html = page.read_text(encoding="utf-8")
    assert "how &lt;sweet&gt;" in html and "how strong" in html and "how sour" not in html
    assert json.loads((tmp_path / "out/runs/base/many/seed-6/test-smell.json").read_text("utf-8")) == {"smell": 18.0}
    (tmp_path / "out/runs/base/many/seed-6/test-smell.json").unlink()
    again, _ = api.run(path, out=tmp_path / "out", jobs=1)  # a run is not done without its tests
    assert again.scenarios["base"].arms["many"].estimates["smell"].count == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"analyses": ["tasty"]}, "analyses: no installed plug-in defines 'tasty'; did you mean 'taste'.*balance"),
        ({"analyses": ["smell"]}, "analyses: no installed plug-in defines 'smell'"),
        ({"tests": {"smel": {"arm": "many"}}}, "tests: no installed plug-in defines 'smel'; did you mean 'smell'"),
        ({"tests": {"smell": {"arm": "man"}}}, r"tests\.smell\.arm: 'man' is not defined; did you mean 'many'"),
        ({"tests": {"smell": {"arm": "many", "scenarios": ["x"]}}}, r"tests\.smell\.scenarios: 'x' is not defined"),
        (
            {"tests": {"smell": {"arm": "many", "strngth": 2}}},
            r"tests\.smell\.strngth: unknown setting.*smell\.strength",
        ),
        ({"tests": {"smell": {}}}, r"tests\.smell\.arm"),
    ],
)
def test_unknown_names_and_wrong_settings_are_refused_before_anything_runs(
    tasting: Study, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(Definition.parse(tasting(**changes)))
    with pytest.raises(ConfigError, match=message):
        expand(Definition.parse(tasting(**changes)), only=["*/few"])


def test_a_name_that_several_plug_ins_define_is_refused(tasting: Study, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(PART, encoding="utf-8")
    arms = {**tasting()["arms"], "few": {"change": {"selection": str(other)}}}
    with pytest.raises(ConfigError, match=r"several plug-ins define 'taste' \(selection '.*other\.py'.*tasty\.py'\)"):
        expand(Definition.parse(tasting(arms=arms)))


def test_the_study_s_own_plug_ins_come_first(tasting: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PART.replace("def taste", "def mine").replace('"taste": taste', '"taste": mine'), encoding="utf-8")
    other = PartRef(Kind.SELECTION, str(tmp_path / "tasty.py"), "study")
    monkeypatch.setattr(registry, "installed", lambda what: iter([other]))
    made = Definition.parse(tasting(arms={"few": {"change": {"selection": str(file)}}}, reference="few"))
    (run, *_) = expand(made)
    parts = StudyParts.of([run.experiment])
    assert [analysis.__name__ for analysis in parts.analyses(made)] == ["mine"] and other in parts.installed


def test_a_part_that_is_not_sound_names_its_plug_in(tasting: Study, tmp_path: Path) -> None:
    (tmp_path / "tasty.py").write_text(PART.replace("return StudyPart(", "return dict("), encoding="utf-8")
    with pytest.raises(PluginInvalid, match=r"tasty\.py.*build_study returned a dict, expected a .*StudyPart"):
        expand(Definition.parse(tasting()))


def test_a_broken_plug_in_that_a_study_does_not_need_is_left_out(
    tasting: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('on purpose')", encoding="utf-8")
    monkeypatch.setattr(registry, "installed", lambda what: iter([PartRef(Kind.MONITOR, str(broken), what)]))
    assert expand(Definition.parse(tasting()))
    with pytest.raises(ConfigError, match=r"(?s)'bitterness'.* '.*broken\.py' could not be loaded: .*on purpose"):
        expand(Definition.parse(tasting(analyses=["bitterness"])))


def test_columns_of_plug_ins_that_a_study_does_not_use_stay_out(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tasty.py"
    file.write_text(PART, encoding="utf-8")
    monkeypatch.setattr(registry, "installed", lambda what: iter([PartRef(Kind.SELECTION, str(file), what)]))
    made = Definition.parse(study())
    parts = StudyParts.of(run.experiment for run in expand(made))
    assert {column.number for column in parts.columns(made)} == {"kl", "kl_3", "kl_5", "qcid", "coverage"}
    assert parts.ratios(made) == {"coverage"}
    named = made.model_copy(update={"analyses": ("taste",)})
    assert {"sweetness", "smell", "sourness"} <= {column.number for column in parts.columns(named)}
    assert parts.ratios(named) == {"coverage", "sweetness"}
