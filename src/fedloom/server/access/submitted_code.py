"""Code that a submitted experiment names by name and SHA-256: replaced by the server's own files of that content."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from fedloom.core.code_files import code_digest, set_text
from fedloom.core.code_names import CodeName, keep_in_store
from fedloom.core.config import Experiment, plugin_schema
from fedloom.core.errors import FedloomError, Forbidden, UsageError
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.records import Info, JsonObject
from fedloom.core.registry import PartRef
from fedloom.core.setting_types import SettingKind, text_settings


def with_own_code(values: Info, allowed: Collection[str], *, any_path: bool) -> tuple[JsonObject, frozenset[str]]:
    """Return an experiment that refers to the server's own code, and the texts that were inserted.

    Args:
        values: the experiment as it was submitted, not validated yet.
        allowed: files and folders that the server's operator allows; a folder stands for what is in it, too.
        any_path: an administrator's: a path given with the digest is taken if it has that content here, and code that
            only nodes load need not be here.

    Raises:
        Forbidden: no allowed file or folder has the name and content.
        UsageError: the server's file at an administrator's path has other content, or is not there.
    """
    own, put_in = copy.deepcopy(dict(values)), set[str]()
    for section, kind in SECTIONS.items():
        given = own.get(section)
        if isinstance(given, str) and CodeName.parse(given) is not None:
            given = own[section] = {"name": given}
        if not isinstance(given, dict):
            continue
        for steps, code in _named(given, kind, lambda name: any_path or name in allowed or name in put_in):
            where = ".".join(map(str, (section, *steps)))
            path = _own_copy(code, where, allowed, any_path=any_path)
            if path is None and (kind is not Kind.WORKLOAD or steps == ("name",)):
                raise UsageError(
                    f"{where} = {code.name!r}: this server has no copy with SHA-256 {code.sha256}. Put it there, at "
                    f"{code.path or 'the path you give'}, or start the server with --allow FILE"
                )
            text = str(code.content) if path is None else str(path)
            text += f":{code.attribute}" if code.attribute else ""
            set_text(given, steps, text)
            put_in.add(text)
    return own, frozenset(put_in)


def require_allowed(copy: Path, where: str, allowed: Collection[str]) -> None:
    """Check that a run's copy of code has the name and content of a file or folder that is allowed now.

    Args:
        copy: the file or folder in the run's folder.
        where: the setting that names it, for the message.
        allowed: files and folders that the server's operator allows.

    Raises:
        Forbidden: there is none.
    """
    _own_copy(CodeName(copy.name, _digest(copy)), where, allowed, any_path=False)


def save_code_here(experiment: Experiment) -> None:
    """Put an experiment's code into this user's store, where agents without a policy find it.

    Raises:
        OSError: it cannot be read, or the store not written.
    """
    for each in experiment.code_files(apps=True):
        path = Path(each.path).expanduser()
        keep_in_store(CodeName.of(path), path)


def _named(
    table: JsonObject, kind: Kind, may_load: Callable[[str], bool]
) -> Iterator[tuple[tuple[str | int, ...], CodeName]]:
    """Yield the texts of a section that name code: the plug-in's own name first, then settings, when that is known.

    A plug-in that is not installed is imported, for the types of its settings, only if `may_load` says so.
    """
    name = table.get("name")
    code = CodeName.parse(name) if isinstance(name, str) else None
    if code is not None:
        yield ("name",), code
    own = str(table.get("name"))
    if not (PartRef(kind, own, "config").installed or may_load(own)):
        return  # it is refused when the experiment is checked
    try:
        schema = plugin_schema(kind, own)
    except FedloomError:
        return  # it is reported when the experiment is parsed
    for setting in text_settings(schema, table):
        found = CodeName.parse(setting.value) if setting.kind in (SettingKind.APP, SettingKind.CODE) else None
        if found is not None and setting.steps != ("name",):
            yield setting.steps, found


def _own_copy(code: CodeName, where: str, allowed: Collection[str], *, any_path: bool) -> Path | None:
    """Return the server's file or folder of a name and content; None for an administrator's that is not here."""
    same_name = [path for each in allowed if each for path in _candidates(Path(each).expanduser(), code.name)]
    found = next((path for path in same_name if _digest(path) == code.sha256), None)
    if found is not None:
        return found.resolve()
    if any_path:
        path = Path(code.path) if code.path else None
        if path is None or not path.exists():
            return None
        if (digest := _digest(path)) != code.sha256:
            raise UsageError(
                f"{where} = {code.path!r}: expected the content you submit, SHA-256 {code.sha256}; the server's file "
                f"has {digest or 'none that can be read'}. Update it, or submit the server's version"
            )
        return path.resolve()
    instead = f"; the one allowed here by that name has SHA-256 {_digest(same_name[0])}" if same_name else ""
    raise Forbidden(
        f"{where} = {code.name[:80]!r} (SHA-256 {code.sha256}) is code that users' runs may not use on this "
        f"server{instead}. Have an administrator submit the run, or allow the file or folder when starting the server: "
        f"fedloom serve --allow {code.name[:80]}"
    )


def _candidates(allowed: Path, name: str) -> Iterator[Path]:
    if allowed.name == name or allowed.resolve().name == name:
        yield from (allowed,) if allowed.exists() else ()
    elif allowed.is_dir() and (allowed / name).exists():
        yield allowed / name


def _digest(path: Path) -> str:
    try:
        return code_digest(path)
    except OSError:
        return ""
