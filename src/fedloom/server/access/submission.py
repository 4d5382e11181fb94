"""Limits users' runs to plug-ins installed on the server, without paths or code."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from fedloom.core.config import Experiment, PluginSettings, plugin_schema
from fedloom.core.config.experiment_file import read_experiment_file
from fedloom.core.errors import Forbidden
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.records import Info, JsonObject
from fedloom.core.registry import PartRef
from fedloom.core.run_files import EXPERIMENT
from fedloom.core.setting_types import (
    SettingKind,
    TextSetting,
    module_file,
    offence,
    text_settings,
)
from fedloom.server.access.calls import Pace
from fedloom.server.access.gate import Caller
from fedloom.server.access.submitted_code import require_allowed, save_code_here, with_own_code
from fedloom.server.store.plugin_copies import saved_code

_WORDS = {
    "code": "names code",
    "path": "may be a path on this server",
    "empty": "is an empty path",
}


MAX_SUBMISSIONS, SUBMISSION_S = 60, 20.0
"""Runs a user may submit in a burst, and seconds per further one."""


class Submissions:
    """Admits submissions, and counts users' submissions and resumed runs. Thread-safe.

    Args:
        allowed: names, settings, files and folders that the server's operator allows.
        shares_code: whether agents of this user on this machine find a run's code in the user's store.
    """

    def __init__(self, allowed: Collection[str] = (), *, shares_code: bool = False) -> None:
        self._allowed, self._shares_code = allowed, shares_code
        self._pace = Pace(MAX_SUBMISSIONS, SUBMISSION_S, "runs submitted by")

    def admit(self, caller: Caller, values: Info) -> JsonObject:
        """Check and count a submission; an administrator's may name anything.

        Returns:
            The experiment, with the server's own copies of the code that it names by digest.

        Raises:
            Forbidden: see `check_submission` and `with_own_code`.
            UsageError: see `with_own_code`.
            LimitExceeded: the user has submitted too many runs; the message says how long to wait.
        """
        is_admin = caller.role == "admin"
        own, own_code = with_own_code(values, self._allowed, any_path=is_admin)
        if not is_admin:
            check_submission(own, own_code.union(self._allowed))
        self.count(caller)
        return own

    def admit_again(self, caller: Caller, folder: Path) -> None:
        """Check and count a run that is resumed: its copies of code must be of code that is allowed now.

        Nothing of them is imported before.

        Raises:
            Forbidden: see `check_submission`.
            LimitExceeded: the user has submitted too many runs.
        """
        self.count(caller)
        if caller.role == "admin":
            return
        places = {f"./{each.copy_at}": str((folder / each.copy_at).resolve()) for each in saved_code(folder)}
        for each in saved_code(folder):
            require_allowed(folder / each.copy_at, each.setting, self._allowed)
        own, values = set[str](), read_experiment_file(folder / EXPERIMENT)
        placed = {key: _with_places(value, places, own) for key, value in values.items()}
        check_submission(placed, own.union(self._allowed))

    def share(self, experiment: Experiment) -> None:
        """Store an admitted experiment's code where agents find it, before their verdicts are collected.

        Raises:
            OSError: it cannot be read, or the store not written.
        """
        if self._shares_code:
            save_code_here(experiment)

    def count(self, caller: Caller) -> None:
        """Count a run that a user submits or resumes.

        Raises:
            LimitExceeded: there were too many; the message says how long to wait.
        """
        if caller.role != "admin":
            self._pace.enter(caller.name)


def _with_places(value: object, places: Mapping[str, str], used: set[str]) -> object:
    """Return settings in which a run's copies of code are absolute paths, and add these texts to `used`."""
    if isinstance(value, Mapping):
        return {key: _with_places(inner, places, used) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_places(inner, places, used) for inner in value]
    if not isinstance(value, str):
        return value
    place, colon, name = value.partition(":")
    known = places.get(place, place)
    if known in places.values():
        used.add(known + colon + name)
        return known + colon + name
    return value


def check_submission(values: Info, allowed: Collection[str]) -> None:
    """Reject a user's experiment that uses anything not allowed to users.

    The server imports the plug-ins an experiment names and builds its strategy, selection and monitor with the settings
    given. So names must be those of fedloom and of installed plug-ins, and no setting may be a path or code. Of a
    workload, which runs on nodes, code and empty paths are refused; its other paths are judged by each node's policy.

    Args:
        values: the experiment, not validated yet.
        allowed: names, settings, files and folders that the server's operator allows.

    Raises:
        Forbidden: names the setting, the reason, and the remedy.
    """
    for section, kind in SECTIONS.items():
        given = values.get(section)
        name = given.get("name") if isinstance(given, Mapping) else given
        if not isinstance(name, str):
            continue
        ref = PartRef(kind, name, section)
        if name not in allowed and not ref.installed:
            raise _forbidden(section, name, f"is not one of the {kind} installed on this server")
        if isinstance(given, Mapping):
            schema = plugin_schema(kind, name)
            texts = sorted(text_settings(schema, given), key=lambda each: each.kind is not SettingKind.APP)
            app = next((each.value for each in texts if each.kind is SettingKind.APP), "")
            for setting in texts:
                if setting.steps != ("name",):
                    _check_text(section, setting, app, allowed)
            for where, key in _keys(given, section) if kind is not Kind.WORKLOAD else ():
                found = offence(TextSetting((key,), key, SettingKind.PLAIN, declared=False))
                if found is not None and not _free(schema, given, where, section):
                    raise _forbidden(where, key, _WORDS[found])


def _check_text(section: str, setting: TextSetting, app: str, allowed: Collection[str]) -> None:
    """Refuse a text that refers to code or a path, unless it is allowed, or is in the allowed folder `app`."""
    found = offence(setting)
    if found is None or (setting.value and setting.value in allowed) or _in_allowed_folder(setting, app, allowed):
        return
    if section == "workload" and (found == "path" or not _is_code(setting)) and found != "empty":
        return  # the nodes' matter
    words = f"{_WORDS['path']}, to a folder of code" if setting.kind is SettingKind.APP else _WORDS[found]
    raise _forbidden(f"{section}.{setting.dotted}", setting.value, words)


def _is_code(setting: TextSetting) -> bool:
    """Return whether a text is code by the kind of its field, regardless of its form."""
    return setting.kind in (SettingKind.CODE, SettingKind.CLASS, SettingKind.APP)


def _in_allowed_folder(setting: TextSetting, app: str, allowed: Collection[str]) -> bool:
    """Return whether a text is `app`, the folder of an allowed app, or a component whose module is in it."""
    if not app or "\0" in app:
        return False
    folder = Path(app).resolve()
    if not any(folder == Path(each).resolve() for each in allowed if each):
        return False
    if setting.kind is SettingKind.APP:
        return setting.value == app
    return setting.kind is SettingKind.CODE and module_file(setting.value, folder) is not None


def _free(schema: type[PluginSettings], table: Info, where: str, section: str) -> bool:
    """Return whether a key is one of free text, which is passed to an app."""
    inside = where.removeprefix(section).lstrip(".")
    kinds = {each.kind for each in text_settings(schema, table) if inside and each.dotted.startswith(f"{inside}.")}
    return kinds == {SettingKind.FREE}


def _keys(value: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield every key of a table at any depth, with its location."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield where, str(key)
            yield from _keys(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _keys(inner, where)


def _forbidden(where: str, value: str, what: str) -> Forbidden:
    return Forbidden(
        f"{where} = {value[:80]!r} {what}, which users' runs may not use. Have an administrator submit the run, or "
        f"allow it when starting the server: fedloom serve --allow {value[:80]!r}"
    )
