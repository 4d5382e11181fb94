"""`plugins.md`: every plug-in that comes with fedloom in one line, with its settings and its page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from fedloom.cli.reference.markdown import code, document, table
from fedloom.core import definitions, plugin_folders, registry
from fedloom.core.kinds import Kind
from fedloom.core.registry import PartRef

_PACKAGE = Path(__file__).parents[2]


def render() -> str:
    """Return the whole page."""
    return document(
        "Plug-ins",
        "Plug-ins that come with fedloom. `fedloom list` also shows installed ones, and studies with their titles.",
        *(part for kind in Kind for part in _kind(kind)),
        "## Presets",
        "`fedloom show NAME` prints one.",
        ", ".join(code(name) for name, path in definitions.found("presets").items() if _is_bundled(path)) + ".",
    )


def _kind(kind: Kind) -> Iterator[str]:
    names = [name for name in registry.names(kind) if PartRef(kind, name, "config").origin == "bundled"]
    if names:
        yield f"## {kind.capitalize()}"
        yield f"Set as `{kind.section}.name`."
        yield table(("name", "what it does", "more"), [_row(kind, name) for name in names])


def _row(kind: Kind, name: str) -> tuple[str, str, str]:
    settings = f"[settings](settings.md#{kind.section}-{name})"
    page = _page(kind, name)
    more = (
        settings if page is None else f"{settings}, [page](../../src/fedloom/{page.relative_to(_PACKAGE).as_posix()})"
    )
    return code(name), registry.summary(kind, name), more


def _page(kind: Kind, name: str) -> Path | None:
    """Return the README of a plug-in's folder, or of the nearest folder above it that has one."""
    spec = find_spec(plugin_folders.bundled_module(kind, name) or "")
    if spec is None or spec.origin is None:
        return None
    above = [folder for folder in Path(spec.origin).parents if folder != _PACKAGE and _PACKAGE in folder.parents]
    return next((page for folder in above if (page := folder / "README.md").is_file()), None)


def _is_bundled(path: Path) -> bool:
    return _PACKAGE in path.parents
