"""Checks plug-ins against their interface when they are loaded, whether they subclass the base class or not.

A misspelt optional method would be silently ignored, and a wrongly shaped one would fail in the middle of a run. Both
are rejected here, with file, line, what was found and what was expected.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TypeVar, cast, get_origin
from weakref import WeakKeyDictionary

from fedloom.core.errors import PluginInvalid
from fedloom.core.protocols import (
    HasActions,
    HasLogits,
    KeepsClientState,
    Shard,
    TrainsGroups,
    UsesHelpers,
    Workload,
)
from fedloom.core.registry import PartRef
from fedloom.core.text import nearest

T = TypeVar("T")
_ALIKE = 0.8
"""Similarity from which an unknown method's name counts as a misspelling of a hook that the plug-in does not define."""
_CAPABILITIES: tuple[type, ...] = (HasLogits, HasActions, TrainsGroups, UsesHelpers)
_sound: WeakKeyDictionary[object, set[object]] = WeakKeyDictionary()
"""Classes and functions of plug-ins that passed: rules and measures are rebuilt for every job."""


def conform(part: object, interface: type[T], ref: PartRef) -> T:
    """Return a plug-in's object as its interface, with the interface's defaults for missing methods.

    Args:
        part: the plug-in's object: an instance of the base class, or any object (or function, where the interface is
            callable) with its methods.
        interface: the base class.
        ref: its origin, for errors.

    Raises:
        PluginInvalid: a required method is missing, or one is misspelt or wrongly shaped.
    """
    base = get_origin(interface) or interface
    _check_kind(part, base, ref)
    code = part if inspect.isfunction(part) else type(part)
    if base not in _sound.get(code, ()) or _instance_methods(part):
        _check_fit(part, base, ref)
        _sound.setdefault(code, set()).add(base)
    if isinstance(part, base):
        return cast(T, part)
    return cast(T, _adapted(part, base))


def _check_fit(part: object, base: type, ref: PartRef) -> None:
    """Refuse what lacks a method or a State, or has one that is misspelt or wrongly shaped."""
    _check_methods(part, _hooks(base), _required(base), ref)
    if "State" in _attributes(base) and not dataclasses.is_dataclass(inspect.getattr_static(part, "State", None)):
        raise PluginInvalid(
            f"{_where(type(part), ref)}: {type(part).__name__} has no State; expected a class attribute State, the "
            "frozen dataclass its states are, so that a run can be resumed"
        )


def check_call(name: str, found: Callable[..., object], arguments: tuple[str, ...], ref: PartRef) -> None:
    """Reject a function that cannot be called with these positional arguments.

    Raises:
        PluginInvalid: its parameters differ; the message shows both.
    """
    if inspect.isfunction(found) and arguments in _sound.get(found, ()):
        return
    try:
        signature = inspect.signature(found)
        signature.bind(*arguments)
    except TypeError as exc:
        raise PluginInvalid(
            f"{_where(found, ref)}: found {name}{_shown(found)}, expected {name}({', '.join(arguments)}) ({exc})"
        ) from exc
    except ValueError:  # a callable without a signature, written in C
        return
    if inspect.isfunction(found):
        _sound.setdefault(found, set()).add(arguments)


def check_workload(part: object, ref: PartRef) -> Workload[Shard]:
    """Return a plug-in's object as a workload.

    Raises:
        PluginInvalid: a required method is missing, or one is misspelt or wrongly shaped.
    """
    _check_kind(part, Workload, ref)
    required = _hooks(Workload)
    optional = {name: hook for kind in _CAPABILITIES for name, hook in _hooks(kind).items()}
    shapes = {**optional, **required}
    if isinstance(part, KeepsClientState):
        shapes |= _hooks(KeepsClientState)
    _check_methods(part, shapes, frozenset(required), ref)
    return cast(Workload[Shard], part)


def _check_kind(part: object, base: type, ref: PartRef) -> None:
    """Reject a class, a function or a plain value if an object with the interface's methods is expected."""
    calls = "__call__" in _hooks(base)
    if part is None or isinstance(part, type) or (inspect.isroutine(part) and not calls):
        name = part.__name__ if isinstance(part, type) else type(part).__name__
        found = f"the class {name}" if isinstance(part, type) else f"a {name}" if part is not None else "None"
        methods = ", ".join(sorted(_required(base) or _hooks(base)))
        raise PluginInvalid(
            f"{_where(part, ref)}: build_{ref.part} returned {found}, expected an object of a class with {methods} "
            f"({base.__name__})" + (f"; return {name}(…)" if isinstance(part, type) else "")
        )


def _hooks(interface: type) -> dict[str, Callable[..., object]]:
    """Return the interface's methods by name, `__call__` included if it is callable."""
    found: dict[str, Callable[..., object]] = {}
    for kind in reversed(interface.__mro__[:-1]):
        for name, value in vars(kind).items():
            if inspect.isfunction(value) and (name == "__call__" or not name.startswith("_")):
                found[name] = value
    return found


def _required(interface: type) -> frozenset[str]:
    return frozenset(vars(interface).get("__abstractmethods__", frozenset()))


def _check_methods(
    part: object, hooks: dict[str, Callable[..., object]], required: frozenset[str], ref: PartRef
) -> None:
    """Refuse a missing, misspelt or wrongly shaped method."""
    own = dict(_own_methods(part))
    strange = sorted(name for name in own if name not in hooks and not name.startswith("_"))
    absent = [name for name in hooks if name not in own]
    for name in strange:
        meant = nearest(name, absent, cutoff=_ALIKE)
        if meant is not None:
            raise PluginInvalid(
                f"{_where(own[name], ref)}: found a method {name!r}, which nothing calls; expected {meant!r}? Rename "
                "it, or begin its name with an underscore if it is a helper"
            )
    for name in sorted(required - own.keys()):
        raise PluginInvalid(
            f"{_where(type(part), ref)}: {type(part).__name__} has no method {name!r}; expected "
            f"{name}{_shown(hooks[name])}"
        )
    for name in hooks.keys() & own.keys():
        _check_shape(name, own[name], hooks[name], ref)


def _own_methods(part: object) -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield the methods the plug-in defines, inherited from its bases but not from the interface."""
    if inspect.isfunction(part):
        yield "__call__", part
        return
    for name in dir(type(part)):
        if name.startswith("_") and name != "__call__":
            continue
        value = inspect.getattr_static(type(part), name)
        value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if inspect.isfunction(value) and not value.__module__.startswith("fedloom.core."):
            yield name, value
    yield from _instance_methods(part).items()


def _instance_methods(part: object) -> dict[str, Callable[..., object]]:
    """Return methods set on the object itself, which others of its class may lack."""
    own = vars(part) if hasattr(part, "__dict__") and not inspect.isfunction(part) else {}
    return {name: v for name, v in own.items() if callable(v) and not isinstance(v, type) and name[0] != "_"}


def _check_shape(name: str, found: Callable[..., object], hook: Callable[..., object], ref: PartRef) -> None:
    """Refuse a method that cannot be called as the platform calls the hook."""
    wanted = [p for p in inspect.signature(hook).parameters.values() if p.name != "self"]
    positional = [p for p in wanted if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = {p.name: None for p in wanted if p.kind is p.KEYWORD_ONLY}
    is_method = next(iter(inspect.signature(found).parameters), "") == "self"
    try:
        inspect.signature(found).bind(*[None] * (len(positional) + is_method), **keywords)
    except TypeError as exc:
        raise PluginInvalid(
            f"{_where(found, ref)}: found {name}{_shown(found)}, expected {name}{_shown(hook)} ({exc})"
        ) from exc


def _shown(function: Callable[..., object]) -> str:
    """Return the signature without annotations, as in a call."""
    parameters = inspect.signature(function).parameters.values()
    plain = [p.replace(annotation=p.empty) for p in parameters if p.name != "self"]
    return str(inspect.Signature(plain))


def _where(code: object, ref: PartRef) -> str:
    """Return file and line of a method or class, and its plug-in."""
    plugin = f"{ref.kind.section} {ref.name!r}"
    if code is None:
        return f"{ref.load().__file__} ({plugin})"
    try:
        target = inspect.unwrap(code) if callable(code) else type(code)
        _, line = inspect.getsourcelines(target)
        return f"{inspect.getsourcefile(target)}, line {line} ({plugin})"
    except (OSError, TypeError):
        return plugin


def _adapted(part: object, base: type) -> object:
    """Return an instance of the interface that calls the plug-in's methods if defined, otherwise the defaults."""
    members: dict[str, object] = {name: _forward(method) for name, method in _bound_methods(part, base)}
    members |= {name: getattr(part, name) for name in _attributes(base) if name in dir(part)}
    if "evaluation" in members:
        members.setdefault("evaluates", True)
    members["wrapped"] = part
    return type(type(part).__name__, (base,), members)()


def _attributes(base: type) -> set[str]:
    """Return the names the interface declares besides methods."""
    return {name for kind in base.__mro__ for name in vars(kind).get("__annotations__", {})}


def _bound_methods(part: object, base: type) -> Iterator[tuple[str, Callable[..., object]]]:
    if inspect.isfunction(part):
        yield "__call__", part
        return
    own = dict(_own_methods(part))
    for name in _hooks(base):
        if name in own:
            yield name, getattr(part, name)


def _forward(method: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(method)
    def forwarded(_: object, *arguments: object, **settings: object) -> object:
        return method(*arguments, **settings)

    return forwarded
