"""Code that a node's owner allows: files, folders and modules, found by the name and SHA-256 a server gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedloom.core.code_files import code_digest, set_text
from fedloom.core.code_names import CodeName, keep_in_store, stored
from fedloom.core.config import plugin_schema
from fedloom.core.errors import PolicyRefused, UnknownName
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.records import Info, JsonObject
from fedloom.core.registry import is_path
from fedloom.core.setting_types import SettingKind, text_settings


class NodeCode:
    """The code of one list, such as `code` in a node's policy.

    Args:
        listed: modules, files and folders. A folder stands for itself (a package, a Flower app) and for the files and
            folders in it. An entry `PATH#sha256=HEX` allows that content alone.
        here: relative paths start at this folder.
        stored_too: take what lies in the user's store already, as agents without a policy do.
    """

    def __init__(self, listed: Sequence[str], here: Path, *, stored_too: bool = False) -> None:
        self._paths = list(_paths(listed, here))
        self._modules = frozenset(listed)
        self._stored_too = stored_too
        self._found: dict[CodeName, Path] = {}

    def lists_module(self, name: str) -> bool:
        """Return whether a module is listed by its dotted name."""
        return name in self._modules and not is_path(name)

    def find(self, code: CodeName, what: str) -> Path:
        """Return this machine's own copy of code; what is loaded is a copy in the user's store, with that content.

        Args:
            code: name and digest, as the server sent them.
            what: the setting, for errors.

        Raises:
            PolicyRefused: no listed file or folder has this name and content.
        """
        wanted = code.content
        if code.path:
            raise PolicyRefused(
                f"{what} = {str(code)[:80]!r} is a path of another machine; code is found by name and SHA-256 alone",
                kind="code",
            )
        if wanted not in self._found:
            self._found[wanted] = self._look_up(wanted, what)
        return self._found[wanted]

    def path_of(self, code: CodeName) -> Path | None:
        """Return the listed file or folder that has a name and content; None if there is none."""
        return next((path for path in self._named(code) if _digest(path) == code.sha256), None)

    def _look_up(self, code: CodeName, what: str) -> Path:
        source = self.path_of(code)
        try:
            if source is not None:
                return keep_in_store(code, source)
            if self._stored_too:
                return stored(code)
        except (OSError, UnknownName):  # it has just been changed, or is not there
            pass
        others = [digest for path in self._named(code) if (digest := _digest(path))]
        instead = f"; the file of that name here has SHA-256 {others[0]}" if others else ""
        raise PolicyRefused(
            f"{what}: code {code.name[:80]!r} with SHA-256 {code.sha256} is not listed here as code that may run"
            f"{instead}. Its owner can list the file or folder under `code` in the node's policy",
            kind="code",
        )

    def _named(self, code: CodeName) -> Iterator[Path]:
        """Yield the listed places of this name that may hold the content."""
        for path, pinned in self._paths:
            if path.name == code.name and pinned in ("", code.sha256):
                yield path
            elif not pinned and (path / code.name).exists():
                yield path / code.name


def located(values: Info, code: NodeCode) -> JsonObject:
    """Return an experiment with the code that its plug-ins' names and its workload's settings name found here.

    For agents without a policy; with one, `client.guard.Guard` judges every text.

    Raises:
        PolicyRefused: a file or folder of that name and content is not here.
    """
    own: JsonObject = copy.deepcopy(dict(values))
    for section in SECTIONS:
        given = own.get(section)
        name = given.get("name") if isinstance(given, dict) else given
        if isinstance(name, str) and (found := CodeName.parse(name)) is not None:
            code.find(found, section)
    workload = own.get(Kind.WORKLOAD.section)
    if isinstance(workload, dict):
        for setting in list(text_settings(plugin_schema(Kind.WORKLOAD, str(workload.get("name"))), workload)):
            named = CodeName.parse(setting.value) if setting.kind in (SettingKind.APP, SettingKind.CODE) else None
            if named is not None:
                path = code.find(named, f"workload setting {setting.dotted}")
                set_text(workload, setting.steps, f"{path}:{named.attribute}" if named.attribute else str(path))
    return own


def _paths(listed: Sequence[str], here: Path) -> Iterator[tuple[Path, str]]:
    """Yield the paths of a list, each with the digest it is bound to, or an empty text."""
    for entry in listed:
        code = CodeName.parse(entry)
        place = entry if code is None else code.path or code.name
        if code is not None or is_path(entry):
            yield (here / Path(place).expanduser()).absolute(), "" if code is None else code.sha256


def _digest(path: Path) -> str:
    try:
        return code_digest(path) if path.exists() else ""
    except OSError:
        return ""
