"""Finds the files and folders of code that settings refer to, and names them by content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fedloom.core import registry
from fedloom.core.code_files import CodeFile
from fedloom.core.code_names import CodeName
from fedloom.core.config.settings import PluginSettings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import SettingKind, text_settings


def code_of_section(section: str, settings: PluginSettings, *, apps: bool) -> Iterator[CodeFile]:
    """Yield the files and folders of code that a plug-in's name and settings of the kind `CODE` refer to.

    Args:
        section: the plug-in's section.
        settings: its settings.
        apps: yield the folders of hosted apps, too.
    """
    for text in text_settings(type(settings), settings.model_dump(mode="json", exclude_none=True)):
        place, colon, attribute = text.value.rpartition(":")
        if text.steps == ("name",) and registry.is_path(text.value):
            yield CodeFile(section, text.steps, text.value, "")
        elif text.kind is SettingKind.CODE and place.endswith(".py"):
            yield CodeFile(section, text.steps, place, colon + attribute)
        elif apps and text.kind is SettingKind.APP and CodeName.parse(text.value) is None:
            yield CodeFile(section, text.steps, text.value, "")


def name_of(file: CodeFile, *, with_path: bool) -> str:
    """Return the name and SHA-256 of a file or folder of code, as other machines read it.

    Args:
        file: refers to it.
        with_path: add its absolute path.

    Raises:
        ConfigError: there is no such file or folder here, or it cannot be read.
    """
    path = Path(file.path).expanduser().absolute()
    try:
        code = CodeName.of(path, file.rest.removeprefix(":"))
    except OSError as exc:
        raise ConfigError(
            f"{file.dotted} = {file.path!r}: cannot be read ({exc.strerror}). Other machines find code by name "
            "and SHA-256, so it has to be here, too"
        ) from exc
    return str(replace(code, path=str(path)) if with_path else code)
