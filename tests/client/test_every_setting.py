"""Every text field of every plug-in, with texts that would be code or paths: refused by the kind of the field."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from policies import guard
from pydantic import BaseModel

from fedloom.core import registry
from fedloom.core.code_names import CodeName
from fedloom.core.config import plugin_schema
from fedloom.core.errors import Forbidden, PolicyRefused
from fedloom.core.kinds import Kind
from fedloom.core.setting_types import SettingKind, TextSetting, text_settings
from fedloom.server.access.submission import check_submission

Place = Callable[[str], Any]
TEXTS = (
    "",
    " ",
    "this.x",
    "this:",
    ":x",
    "os:abort",
    "os.path:join",
    *("text", "csv", "json", "parquet", "imagefolder", "arrow", "webdataset"),
    *("kept", "kept/x", "./kept", "../kept", "/etc/passwd", "~root/x", "$HOME/x"),
    *("$DATA/../x", "$DATA/out", "$DATA/out/x", "$DATA2", "a\0b"),
)
"""None of these is below a node's data folder (`out` is a link that leads out of it), or code that anybody allowed."""
REFERS = (SettingKind.CODE, SettingKind.APP, SettingKind.PATH, SettingKind.HUB)


def places(annotation: object, seen: tuple[type, ...] = ()) -> Iterator[Place]:
    """Ways to put a text into a value of a type, at any depth."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return
        for name, field in annotation.model_fields.items():
            for place in places(field.annotation, (*seen, annotation)):
                yield lambda text, key=field.alias or name, place=place: {key: place(text)}  # type: ignore[misc]
    elif annotation in (str, object, Any):
        yield lambda text: text
    elif origin is Annotated:
        yield from places(inner[0], seen)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from (lambda text, place=place: {"key": place(text)} for place in places(inner[1], seen))
    elif origin in (tuple, list, typing.get_origin(typing.Sequence[int])):
        yield from (lambda text, place=place: [place(text)] for place in places(inner[0], seen))
    elif origin is not Literal:
        for each in inner:
            yield from places(each, seen)


def settings(kind: Kind, name: str) -> Iterator[tuple[TextSetting, Mapping[str, Any]]]:
    """Every text field of a plug-in with every text."""
    schema = plugin_schema(kind, name)
    for place in places(schema):
        for text in TEXTS:
            table = place(text)
            if table.keys() != {"name"}:
                (setting,) = text_settings(schema, table)
                yield setting, table


NODE_SIDE = [(Kind.WORKLOAD, name) for name in registry.names("workloads")]
SERVER_SIDE = [(kind, name) for kind in Kind if kind is not Kind.WORKLOAD for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), NODE_SIDE, ids=str)
@pytest.mark.parametrize("has_data", [True, False], ids=["with data", "without data"])
def test_a_node_takes_no_path_and_no_code(
    kind: Kind, name: str, has_data: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "text").write_text("a secret", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "data").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "data" / "out").symlink_to(tmp_path / "outside")
    own = guard(tmp_path, workloads={name: {"data": str(tmp_path / "data")} if has_data else {}})
    checked = 0
    for setting, table in settings(kind, name):
        given = {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": {"name": name, **table}}
        if setting.kind in REFERS and not setting.known:
            with pytest.raises(PolicyRefused) as caught:
                own.admit_experiment(given)
            assert setting.dotted in str(caught.value), "the exact setting is named"
            checked += 1
        else:
            try:
                passed = own.admit_experiment(given)["workload"]
            except PolicyRefused:
                continue
            assert passed == given["workload"], "a word is passed on as it is"
    assert checked or not any(setting.kind in REFERS for setting, _ in settings(kind, name))


@pytest.mark.parametrize(("kind", "name"), SERVER_SIDE, ids=str)
def test_a_users_run_names_no_path_and_no_code_of_the_server(kind: Kind, name: str) -> None:
    for setting, table in settings(kind, name):
        values = {"strategy": "fedavg", "workload": "image_classification", kind.section: {"name": name, **table}}
        by_name = setting.kind is SettingKind.CLASS and setting.value.isidentifier()
        if setting.kind in (*REFERS, SettingKind.CLASS) and not setting.known and not by_name:
            with pytest.raises(Forbidden) as caught:
                check_submission(values, ())
            assert f"{kind.section}.{setting.dotted}" in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), NODE_SIDE, ids=str)
def test_a_users_run_names_no_code_of_a_node_and_no_empty_path(kind: Kind, name: str) -> None:
    for setting, table in settings(kind, name):
        values = {"strategy": "fedavg", "workload": {"name": name, **table}}
        code = setting.kind in (SettingKind.CODE, SettingKind.APP)
        if code or (setting.kind in REFERS and not setting.value.strip()):
            with pytest.raises(Forbidden, match=f"workload.{setting.dotted.replace('.', '[.]')}"):
                check_submission(values, ())


@pytest.mark.parametrize("key", ["train_metrics_aggr_fn", "evaluate_metrics_aggr_fn", "x_rule", "deep_fn"])
def test_an_option_that_wants_a_function_is_code_whatever_it_says(key: str) -> None:
    for text in ("torch.save", "sympy.lambdify", "plain", "", "a:b"):
        for options in ({key: text}, {"deep": {key: text}}, {"many": [{key: text}]}):
            for table in ({"options": options}, {"wrapper": {"name": "server_fixed_clipping", "options": options}}):
                with pytest.raises(Forbidden, match=f"{key} = .* names code"):
                    check_submission({"strategy": {"name": "flower", **table}, "workload": "flower"}, ())


@pytest.mark.parametrize("name", ["unittest.__main__.x", "this.x", "this:x", "this:", "", "subprocess:Popen", "a b"])
def test_a_class_of_flowers_is_a_plain_name(name: str) -> None:
    for table in ({"class": name}, {"wrapper": {"name": name}}):
        with pytest.raises(Forbidden, match="names code"):
            check_submission({"strategy": {"name": "flower", **table}, "workload": "image_classification"}, ())
    check_submission({"strategy": {"name": "flower", "class": "Krum"}, "workload": "image_classification"}, ())


def test_values_that_an_app_is_handed_are_free(tmp_path: Path) -> None:
    """Nobody here opens or imports them; who allows an app trusts what it does with them."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "client.py").write_text("app = 1\n", encoding="utf-8")
    handed = {"loss_fn": "mse", "path": "/anywhere/else", "a:b": "c:d"}
    workload = {"name": "flower", "app": str(CodeName.of(app)), "clientapp": "client:app", "run_config": handed}
    own = guard(tmp_path, workloads={"flower": {"data": str(tmp_path)}}, code=[str(app)])
    given = {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": workload}
    passed = own.admit_experiment(given)["workload"]
    copy = Path(passed["app"])
    assert passed == {**workload, "app": str(copy)} and (copy / "client.py").read_bytes() == b"app = 1\n"
    for path in ("$DATA/app", str(app), "app", "./app"):
        with pytest.raises(PolicyRefused, match="workload setting app"):
            own.admit_experiment({**given, "workload": {**workload, "app": path}})
    for component in ("this:app", "os:abort", "client:", "client", "clients:app"):
        for key in ("clientapp", "initial_arrays"):
            with pytest.raises(PolicyRefused, match=f"workload setting {key}"):
                own.admit_experiment({**given, "workload": {**workload, key: component}})


def test_an_app_that_whoever_started_the_server_allows(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("app = 1\n", encoding="utf-8")
    strategy = {"name": "flower_app", "app": str(tmp_path), "serverapp": "server:app"}
    with pytest.raises(Forbidden, match=r"strategy\.app"):
        check_submission({"strategy": strategy, "workload": "image_classification"}, ())
    check_submission({"strategy": strategy, "workload": "image_classification"}, (str(tmp_path),))
    for serverapp in ("this:", "os:abort", "server:", "other:app"):
        with pytest.raises(Forbidden, match=r"strategy\.serverapp"):
            check_submission(
                {"strategy": {**strategy, "serverapp": serverapp}, "workload": "image_classification"}, (str(tmp_path),)
            )
    for app in ("", "."):
        with pytest.raises(Forbidden, match=r"strategy\.app"):
            check_submission({"strategy": {**strategy, "app": app}, "workload": "image_classification"}, ("", "x"))
