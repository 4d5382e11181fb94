from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from fedloom.cli.reference import commands, errors, plugins, records, settings
from fedloom.cli.reference.__main__ import PAGES, main
from fedloom.cli.reference.markdown import default_words, models_in, table, type_words
from fedloom.cli.reference.variables import VARIABLES
from fedloom.client.policy import Policy
from fedloom.core import registry
from fedloom.core.config import Experiment, PluginSettings, Settings, plugin_schema
from fedloom.core.errors import catalogue
from fedloom.core.history import RoundRecord
from fedloom.core.kinds import Kind
from fedloom.core.registry import PartRef


class Left(Settings):
    side: Literal["left"] = "left"


class Right(Settings):
    side: Literal["right"] = "right"


class Example(Settings):
    plain: int
    bounded: Annotated[float, Field(gt=0, le=1)] = 0.5
    optional: Annotated[int, Field(ge=1)] | None = None
    choice: Literal["a", "b"] = "a"
    several: tuple[Annotated[int, Field(ge=1)], ...] = (3, 4)
    either: Left | Right = Left()


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("plain", "integer", "**required**"),
        ("bounded", "number > 0 and ≤ 1", "`0.5`"),
        ("optional", "integer ≥ 1 or none", "none"),
        ("choice", '`"a"`, `"b"`', '`"a"`'),
        ("several", "list of integer ≥ 1", "`[3, 4]`"),
        ("either", "table", ""),
    ],
)
def test_types_and_defaults_in_words(name: str, kind: str, default: str) -> None:
    field = Example.model_fields[name]
    assert type_words(field.annotation, field.metadata) == kind
    assert default_words(field) == default


def test_choices_between_groups_are_found() -> None:
    assert models_in(Example.model_fields["either"].annotation) == [Left, Right]


def test_bars_in_cells_are_escaped() -> None:
    assert table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |"


def test_every_setting_is_there_with_its_meaning() -> None:
    page = settings.render()
    for name, field in Experiment.model_fields.items():
        assert f"| `{name}` |" in page
        assert field.description is None or " ".join(field.description.split()) in page
    assert "| `round.deadline_s` | number > 0 or none | none | Seconds after which" in page
    assert "### strategy: `fedavg`" in page and "### selection: `uniform`" in page


def declared(model: type[BaseModel], found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Every setting below a model, by the class that declares it; of a plug-in's base class all that it declares."""
    for base in model.__mro__:
        if issubclass(base, Settings) and base is not PluginSettings:
            names = vars(base).get("__annotations__", {}).keys() & base.model_fields.keys()
            found |= {(f"{base.__module__}.{base.__qualname__}", name) for name in names}
    for field in model.model_fields.values():
        for group in models_in(field.annotation):
            if not issubclass(group, PluginSettings):
                found |= declared(group, found)
    return found


def test_what_several_plug_ins_share_is_printed_once() -> None:
    page = settings.render()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    found = declared(Experiment, set()) | declared(Policy, set())
    for kind in Kind:
        for name in registry.names(kind):
            if PartRef(kind, name, "config").origin == "bundled":
                found |= declared(plugin_schema(kind, name), found)
    printed = Counter(row[0].strip("|` ").split(".")[-1] for row in rows)
    expected = Counter({"class_": "class"}.get(name, name) for _, name in found)
    del printed["name"], expected["name"]  # each plug-in has it, with its own default
    assert printed == expected and printed["learning_rate"] < len(registry.names("workloads"))
    links = set(re.findall(r"\]\(#([^)]*)\)", page))
    titles = {
        re.sub(r"[^a-z0-9 _-]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    assert links and links <= titles


def test_every_command_error_and_record_is_there() -> None:
    shown = commands.render()
    for command in ("run", "resume", "compare", "report", "list", "show", "serve", "client", "submit", "runs", "watch",
                    "stop", "nodes"):  # fmt: skip
        assert f"## fedloom {command}\n" in shown
    assert "| `TARGET` | **required** | A preset's name, a TOML file, a Flower app's folder, or a program" in shown
    assert all(f"`{kind.__name__}`" in errors.render() for kind in catalogue())
    assert all(f"| `{name}` |" in records.render() for name in RoundRecord.model_fields)
    assert "### ClientLost" in records.render()


def test_the_pages_are_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "reference"
    assert main(["--check", str(folder)]) == 1
    assert main([str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == set(PAGES)
    assert main(["--check", str(folder)]) == 0
    capsys.readouterr()
    (folder / "errors.md").write_text("old", encoding="utf-8")
    assert main(["--check", str(folder)]) == 1
    assert capsys.readouterr().err == f"outdated in {folder}: errors.md. Run `make docs`.\n"


def test_every_variable_that_is_read_is_listed() -> None:
    source = Path(commands.__file__).parents[2]
    read = {
        name
        for path in source.rglob("*.py")
        if path.name != "variables.py"
        for name in re.findall(r'"(FEDLOOM_[A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    own = {"FEDLOOM_RAY_TOKEN", "FEDLOOM_RAY_SET_UP"}  # of this process for its children
    assert read - own == {name for name in VARIABLES if name.startswith("FEDLOOM_")}


def test_every_plugin_stands_in_the_index() -> None:
    page = plugins.render()
    for kind in Kind:
        for name in registry.names(kind):
            if PartRef(kind, name, "config").origin == "bundled":
                row = next(
                    line
                    for line in page.split("\n")
                    if line.startswith(f"| `{name}` |") and f"#{kind.section}-{name})" in line
                )
                assert registry.summary(kind, name).replace("|", "\\|") in row
    assert "selection/update_norm/README.md" in page and "workloads/_attacks" not in page
