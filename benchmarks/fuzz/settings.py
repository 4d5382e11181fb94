"""Texts of every kind in every field of every plug-in's settings: refused, or harmless words, on server and node.

What passes the server's check of users' runs is built as a submission is, and what passes a node's policy is parsed as
on a node. A module and a file that write down when they are imported or called lie where texts may lead to them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel

from fedloom.client.guard import Guard
from fedloom.client.policy import Policy
from fedloom.client.usage import Usage
from fedloom.core import registry
from fedloom.core.code_names import CodeName
from fedloom.core.config import Experiment, plugin_schema
from fedloom.core.errors import FedloomError
from fedloom.core.kinds import Kind
from fedloom.core.plugins import check_parts
from fedloom.core.records import Info
from fedloom.core.setting_types import SettingKind, text_settings
from fedloom.server.access.submission import check_submission
from fedloom.server.access.submitted_code import with_own_code

Place = Callable[[object], Any]
CANARY = "fedloom_fuzz_canary"
_CODE = """
from pathlib import Path
FIRED = Path(__file__).with_name("fired")
FIRED.touch()
def run(*args, **kwargs):
    FIRED.touch()
"""
_PARTS = (
    *(CANARY, f"{CANARY}:run", f"{CANARY}.run", f"{CANARY}:", f":{CANARY}", f"{CANARY}.py", f"./{CANARY}.py"),
    *("os:abort", "os.path:join", "this", "builtins:eval", "__main__:x", "..", ".", "~", "$HOME", "$DATA", "$DATA/x"),
    *("secret", "/etc/passwd", "%2e%2e/x", "file:///etc/passwd", "\uff0f", "\u2215", "\u202e", "a\0b", "\n", " ", ""),
    *("text", "csv", "json", "imagefolder", "C:\\x", "//x", "x" * 300, "\ud83d\ude00", "{0}", "${HOME}", "-", "#", "@"),
)


def places(annotation: object, seen: tuple[type, ...] = ()) -> Iterator[Place]:
    """Yield ways to put a value into one of a type, at any depth."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return
        for name, field in annotation.model_fields.items():
            for place in places(field.annotation, (*seen, annotation)):
                yield lambda value, key=field.alias or name, place=place: {key: place(value)}  # type: ignore[misc]
    elif annotation in (str, object, Any):
        yield lambda value: value
    elif origin is Annotated:
        yield from places(inner[0], seen)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from (lambda value, place=place: {"key": place(value)} for place in places(inner[1], seen))
    elif origin in (tuple, list, typing.get_origin(typing.Sequence[int])):
        yield from (lambda value, place=place: [place(value)] for place in places(inner[0], seen))
    elif origin is not Literal:
        for each in inner:
            yield from places(each, seen)


def text(rng: np.random.Generator, extra: tuple[str, ...] = ()) -> str:
    """Return parts of texts that lead somewhere, put together."""
    parts, joint = (*_PARTS, *extra), str(rng.choice(["", "/", ":", ".", "#sha256="]))
    return joint.join(parts[int(rng.integers(len(parts)))] for _ in range(rng.integers(1, 4)))


def value(rng: np.random.Generator, extra: tuple[str, ...] = (), depth: int = 0) -> object:
    """Return a text, or one inside lists and tables."""
    draw = rng.random()
    if draw < 0.7 or depth > 3:
        return text(rng, extra)
    if draw < 0.85:
        return [value(rng, extra, depth + 1) for _ in range(rng.integers(1, 3))]
    return {text(rng) if rng.random() < 0.3 else "key": value(rng, extra, depth + 1)}


class SettingsFuzz:
    """The target.

    Args:
        folder: an empty one; the working folder during a run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.here, self.data = folder, folder / "here", folder / "data"
        self.here.mkdir()
        self.data.mkdir()
        (folder / "outside").mkdir()
        (folder / "outside" / "secret").write_text("a secret", encoding="utf-8")
        (self.here / "secret").write_text("a secret", encoding="utf-8")
        (self.data / "out").symlink_to(folder / "outside")
        (self.here / f"{CANARY}.py").write_text(_CODE, encoding="utf-8")
        code = CodeName.of(self.here / f"{CANARY}.py")
        self.extra = (str(code), f"{code}:run", str(self.here / f"{CANARY}.py"), "$DATA/out/secret", str(self.here))
        self._usage = Usage(folder / "usage.json")
        self._sections = [(kind, name) for kind in Kind for name in registry.names(kind)]
        self._places = {(kind, name): list(places(plugin_schema(kind, name))) for kind, name in self._sections}

    def run(self, count: int, seed: int) -> list[str]:
        """Try texts in settings; returns what went wrong."""
        rng, wrong = np.random.default_rng(seed), list[str]()
        with contextlib.chdir(self.here), _on_path(self.here):
            for _ in range(count):
                kind, name = self._sections[int(rng.integers(len(self._sections)))]
                fitting = self._places[kind, name]
                if not fitting:
                    continue
                table = fitting[int(rng.integers(len(fitting)))](value(rng, self.extra))
                table = {**(table if isinstance(table, dict) else {}), "name": name}
                if rng.random() < 0.1:
                    table["name"] = text(rng, self.extra)
                said = self._judge(kind, name, table)
                if said or (self.here / "fired").exists():
                    wrong.append(f"{kind} {table!r:.300}: {said or 'ran code'}")
                    (self.here / "fired").unlink(missing_ok=True)
        return wrong

    def _judge(self, kind: Kind, name: str, table: Info) -> str:
        values: dict[str, Any] = {"rounds": 1, "clients": 2, "strategy": "fedavg", "selection": "uniform"}
        values |= {"workload": "image_classification", kind.section: table}
        try:
            return self._on_server(values) or self._on_node(values, name)
        except FedloomError:
            return ""
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"[:300]

    def _on_server(self, values: dict[str, Any]) -> str:
        try:
            own, put_in = with_own_code(values, (), any_path=False)
            check_submission(own, put_in)
            check_parts(Experiment.parse(own))
        except FedloomError:
            pass
        return ""

    def _on_node(self, values: dict[str, Any], name: str) -> str:
        workloads = {each: {"data": str(self.data)} for each in {"image_classification", name}}
        guard = Guard(Policy.model_validate({"workloads": workloads}), self._usage)
        passed = guard.admit_experiment(values)
        schema = plugin_schema(Kind.WORKLOAD, passed["workload"]["name"])
        for setting in text_settings(schema, passed["workload"]):
            if setting.kind is SettingKind.FREE or setting.known or setting.steps == ("name",):
                continue  # nothing opens it
            with contextlib.suppress(ValueError, OSError, RuntimeError):
                place = os.path.expandvars(Path(setting.value).expanduser())
                if os.path.lexists(place) and not Path(place).resolve().is_relative_to(self.data.resolve()):
                    return f"the path {setting.value!r} passes"
        Experiment.parse(passed)
        return ""


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(CANARY, None)
