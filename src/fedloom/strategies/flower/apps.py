"""A Flower app's folder: its `pyproject.toml`, its components, its code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType

from packaging.requirements import InvalidRequirement, Requirement

from fedloom.core.errors import ConfigError
from fedloom.core.plugin_folders import module_spec, package_paths
from fedloom.core.records import Info
from fedloom.core.setting_types import module_file
from fedloom.core.text import dotted
from fedloom.core.toml_files import read_toml
from fedloom.strategies.flower import script

MANIFEST = "pyproject.toml"
"""The file that describes an app."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Content of `[tool.flwr.app]`."""

    name: str
    serverapp: str
    clientapp: str
    config: Info
    """`[tool.flwr.app.config]`, nested tables flattened to dotted keys, as apps read it."""
    dependencies: tuple[str, ...] = ()
    """`project.dependencies`, as the file has them."""
    supernodes: int | None
    """`options.num-supernodes` of the default federation, if the file still has one."""


def read_manifest(folder: Path) -> Manifest:
    """Read a Flower app's `pyproject.toml`.

    Raises:
        ConfigError: no such file, or not a Flower app's; the message says what is missing.
    """
    path = folder / MANIFEST
    try:
        values = read_toml(path)
    except FileNotFoundError as exc:
        raise ConfigError(f"{folder}: no {MANIFEST}, so this is not a Flower app's folder") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    flwr = values.get("tool", {}).get("flwr", {})
    app = flwr.get("app")
    if not isinstance(app, dict):
        raise ConfigError(f"{path}: no table [tool.flwr.app], so this is not a Flower app")
    components = app.get("components", {})
    for part in ("serverapp", "clientapp"):
        if not isinstance(components.get(part), str) or ":" not in components[part]:
            raise ConfigError(
                f'{path}: [tool.flwr.app.components] needs {part} = "module:object", got {components.get(part)!r}'
            )
    return Manifest(
        name=str(values.get("project", {}).get("name", folder.name)),
        serverapp=components["serverapp"],
        clientapp=components["clientapp"],
        config=dotted(app.get("config", {}), keep_empty=False),
        dependencies=tuple(map(str, values.get("project", {}).get("dependencies", ()))),
        supernodes=_supernodes(flwr.get("federations", {})),
    )


def unmet_dependencies(manifest: Manifest) -> list[str]:
    """Return the packages an app asks for that are not installed, or in another version, with what is here."""
    unmet = []
    for text in manifest.dependencies:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            unmet.append(f"{text!r} cannot be parsed as a requirement")
            continue
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            here = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            unmet.append(f"{text} (not installed)")
            continue
        if not wanted.specifier.contains(here, prereleases=True):
            unmet.append(f"{text} ({here} is installed)")
    return unmet


def load_component(folder: Path, component: str, key: str) -> object:
    """Import `module:object` from an app's folder, which is put first on the module search path.

    What is loaded is the app's own: its module lies in the folder, and so does the code of what is loaded. A module
    that is not there may be an installed one, which server and node allow by name; what is loaded is then of its
    package. A process holds one app at a time: the modules of another app's folder are forgotten. torch, where it is
    installed, is loaded with the app, so that its generator is seeded even if the app imports it late.

    Raises:
        ConfigError: the folder, the module or the object is not there, the import error itself being the cause; or it
            is not the app's own, nor the named module's.
    """
    if not folder.is_dir():
        raise ConfigError(f"{key}: folder {str(folder)!r} not found; every machine of the run needs its copy")
    module_name, colon, attribute = component.partition(":")
    if not colon:
        raise ConfigError(f'{key}: expected "module:object", got {component!r}')
    if (program := program_of(folder, component)) is not None:
        prepare(folder)
        return script.component(program, attribute)
    home = folder.resolve()
    if module_file(component, home) is None:
        home = _installed_home(component, key, folder)
    prepare(folder)
    try:
        module = importlib.import_module(module_name)
        found: object = module
        for step in attribute.split("."):
            found = getattr(found, step)
    except Exception as exc:
        raise ConfigError(
            f"{key} = {component!r}: cannot be loaded from {folder}: {type(exc).__name__}: {exc}. Is everything the "
            "app needs installed here?"
        ) from exc
    for part in (module, found):
        if not _is_inside(part, home):
            raise ConfigError(f"{key} = {component!r}: this is not the app's own, but that of {_home_of(part)!r}")
    return found


def program_of(folder: Path, component: str) -> Path | None:
    """Return the program in a folder to whose `run_simulation` a component was passed; None for other components."""
    module, _, attribute = component.partition(":")
    return folder / f"{module}{script.SUFFIX}" if attribute.startswith(f"{script.CALL}.") else None


def prepare(folder: Path) -> None:
    """Put a folder first on the module search path, in place of another app's, and load torch where it is installed."""
    _put_on_path(folder.resolve())
    if importlib.util.find_spec("torch") is not None:
        importlib.import_module("torch")


def _installed_home(component: str, key: str, folder: Path) -> Path:
    """Return the folder of the package, or the file, of a module outside the app's folder; imports nothing.

    Raises:
        ConfigError: there is none, it is a part of Python, or the app's folder has another of the same top-level name.
    """
    module = component.partition(":")[0]
    top = module.partition(".")[0]
    spec = module_spec(module) if module and top not in sys.stdlib_module_names else None
    if spec is None or spec.origin is None or any((folder / name).exists() for name in (top, f"{top}.py")):
        raise ConfigError(
            f"{key} = {component!r}: expected a module in the app's folder {str(folder)!r}, or an installed one"
        )
    packages = package_paths(top)
    return Path(packages[0] if packages else spec.origin).resolve()


def _home_of(part: object) -> str:
    """Return the module name of a module, a class or a function; empty for other objects."""
    if isinstance(part, ModuleType):
        return part.__name__
    return part.__module__ if isinstance(part, type | FunctionType | BuiltinFunctionType) else ""


def _is_inside(part: object, folder: Path) -> bool:
    """Return whether a module, or the module of a class or function, is in a folder; other objects are data."""
    name = _home_of(part)
    if not name:
        return True
    module = part if isinstance(part, ModuleType) else sys.modules.get(name)
    file = None if module is None else vars(module).get("__file__")
    return isinstance(file, str) and Path(file).resolve().is_relative_to(folder)


def check_component(found: object, kind: type, key: str, component: str) -> None:
    """Reject anything but a ServerApp or ClientApp."""
    if not isinstance(found, kind):
        raise ConfigError(f"{key} = {component!r}: expected a flwr {kind.__name__}, got {type(found).__name__}")


def _put_on_path(folder: Path) -> None:
    others = [entry for entry in sys.path if entry != str(folder) and (entry in _put_before or _is_app(Path(entry)))]
    for other in others:
        sys.path.remove(other)
        inside = [
            name
            for name, module in sys.modules.items()
            if isinstance(module, ModuleType) and str(vars(module).get("__file__") or "").startswith(f"{other}/")
        ]
        for name in inside:
            del sys.modules[name]
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        _put_before.add(str(folder))
        importlib.invalidate_caches()


_put_before: set[str] = set()
"""Folders that this process has put on the module search path."""


def _is_app(folder: Path) -> bool:
    path = folder / MANIFEST
    return path.is_file() and "[tool.flwr.app" in path.read_text(errors="replace", encoding="utf-8")


def _supernodes(federations: Info) -> int | None:
    default = federations.get(str(federations.get("default")), {})
    options = default.get("options", {}) if isinstance(default, dict) else {}
    count = options.get("num-supernodes") if isinstance(options, dict) else default.get("options.num-supernodes")
    return count if isinstance(count, int) else None
