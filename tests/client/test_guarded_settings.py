"""Paths and code at any depth of a plug-in's settings: what a node's guard and a server's check of users' runs say.

The settings are those of a plug-in of the test's own, as deep as settings get. The same file is a workload for the node
and a strategy for the server, since each guard judges another section.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from policies import guard

from fedloom.core.code_names import CodeName
from fedloom.core.errors import Forbidden, PolicyRefused
from fedloom.server.access.submission import check_submission

PLUGIN = """
from typing import Annotated, Literal
from pydantic import BaseModel, Field
from fedloom.core.config import PluginSettings
from fedloom.core.setting_types import CodeRef, DataPath

class Word(BaseModel):
    kind: Literal["word"] = "word"
    value: str

class File(BaseModel):
    kind: Literal["file"] = "file"
    value: DataPath

class Code(BaseModel):
    kind: Literal["code"] = "code"
    call: CodeRef

class Config(PluginSettings):
    word: str = "w"
    file: DataPath | None = None
    source: Annotated[Word | File | Code, Field(discriminator="kind")] | None = None
    several: tuple[File | Code, ...] = ()
    named: dict[str, list[DataPath]] = {}
    models: dict[str, Code] = {}
"""
Values = Mapping[str, object]
Place = Callable[[str], Values]

PATHS: dict[str, Place] = {
    "top": lambda text: {"file": text},
    "in a union": lambda text: {"source": {"kind": "file", "value": text}},
    "in a union, as another member": lambda text: {"source": {"kind": "word", "value": text}},
    "in a list of models": lambda text: {"several": [{"value": text}]},
    "in a list in a dictionary": lambda text: {"named": {"a": [text]}},
}
CODES: dict[str, Place] = {
    "in a union": lambda text: {"source": {"kind": "code", "call": text}},
    "in a list of models": lambda text: {"several": [{"kind": "code", "call": text}]},
    "in a dictionary of models": lambda text: {"models": {"a": {"call": text}}},
}


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    return str(tmp_path / "plugin.py")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return (tmp_path / "data").resolve()


def on_a_node(plugin: str, data: Path, settings: Values, code: tuple[str, ...] = ()) -> object:
    """The workload's settings as the node's guard lets them through."""
    own = guard(data.parent, workloads={plugin: {"data": str(data)}}, code=code)
    name = str(CodeName.of(Path(plugin)))
    experiment = {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": {"name": name, **settings}}
    passed = own.admit_experiment(experiment)["workload"]
    assert passed.pop("name") == name, "the file's name and digest, and no path"
    return passed


def on_a_server(plugin: str, settings: Values) -> None:
    """A user's run with these settings of a strategy that the server allows."""
    check_submission({"workload": "image_classification", "strategy": {"name": plugin, **settings}}, (plugin,))


@pytest.mark.parametrize("place", PATHS)
def test_a_node_puts_its_own_folder_in_at_any_depth(plugin: str, data: Path, place: str) -> None:
    passed = on_a_node(plugin, data, PATHS[place]("$DATA/sub/x.bin"))
    assert passed == PATHS[place](str(data / "sub" / "x.bin"))


@pytest.mark.parametrize("place", PATHS)
@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "~/x", "$DATA/../x", "a/b"])
def test_a_node_opens_no_other_path_at_any_depth(plugin: str, data: Path, place: str, path: str) -> None:
    with pytest.raises(PolicyRefused) as caught:
        on_a_node(plugin, data, PATHS[place](path))
    assert caught.value.kind == "data"


@pytest.mark.parametrize("place", PATHS)
def test_a_node_follows_no_link_out_of_its_folder(plugin: str, data: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "outside").mkdir()
    (data / "out").symlink_to(tmp_path / "outside")
    (data / "in").symlink_to(data)
    with pytest.raises(PolicyRefused, match="points outside the data folder"):
        on_a_node(plugin, data, PATHS[place]("$DATA/out/x"))
    with pytest.raises(PolicyRefused, match="only paths below the node's data folder are allowed"):
        on_a_node(plugin, data, PATHS[place](str(data / "out" / "x")))
    assert on_a_node(plugin, data, PATHS[place]("$DATA/in/x")) == PATHS[place](str(data / "x"))


@pytest.mark.parametrize("place", CODES)
@pytest.mark.parametrize("code", ["os:system", "./mine.py:build", "$DATA/mine.py:build", "plain"])
def test_a_node_takes_no_code_at_any_depth(plugin: str, data: Path, place: str, code: str) -> None:
    with pytest.raises(PolicyRefused) as caught:
        on_a_node(plugin, data, CODES[place](code))
    assert caught.value.kind == "code"


@pytest.mark.parametrize("place", CODES)
def test_a_node_takes_code_that_its_owner_lists_at_any_depth(plugin: str, data: Path, place: str) -> None:
    settings = CODES[place]("lab.models:build")
    assert on_a_node(plugin, data, settings, code=("lab.models",)) == settings


@pytest.mark.parametrize("place", PATHS)
@pytest.mark.parametrize("path", ["/etc/passwd", "kept", "$DATA"])
def test_a_user_names_no_path_of_the_server_at_any_depth(plugin: str, place: str, path: str) -> None:
    with pytest.raises(Forbidden, match="may be a path on this server"):
        on_a_server(plugin, PATHS[place](path))


@pytest.mark.parametrize("place", CODES)
@pytest.mark.parametrize("code", ["os:system", "plain"])
def test_a_user_names_no_code_at_any_depth(plugin: str, place: str, code: str) -> None:
    settings = CODES[place](code)
    if "several" in settings:
        settings = {"several": [{"kind": "code", "call": code}]}  # without the path beside it, which is refused as well
    with pytest.raises(Forbidden, match="names code"):
        on_a_server(plugin, settings)


@pytest.mark.parametrize("settings", [{"word": "plain"}, {"source": {"kind": "word"}}, {}])
def test_plain_words_pass_both(plugin: str, data: Path, settings: Values) -> None:
    assert on_a_node(plugin, data, settings) == settings
    on_a_server(plugin, settings)
