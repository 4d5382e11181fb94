"""Locates exceptions in users' code, for errors that name file and line."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

from fedloom.core.errors import PluginInvalid

_OWN = str(Path(__file__).parents[1])
_INSTALLED = ("site-packages", "dist-packages")


def plugin_fault(what: str, exc: BaseException, file: str | None = None) -> PluginInvalid:
    """Return the error for an exception in a plug-in's code, with its file and line.

    Args:
        what: the plug-in and the operation, such as `strategy './mine.py' cannot be imported`.
        exc: the exception.
        file: the plug-in's file, whose last line in the traceback is named; None names the last line that is neither
            fedloom's nor of an installed package.
    """
    place = _place(exc, file)
    message = exc.msg if isinstance(exc, SyntaxError) else str(exc)
    return PluginInvalid(f"{place}{what}: {type(exc).__name__}: {message}")


def is_users_file(file: str) -> bool:
    """Return whether code of this file is a user's: not fedloom's, not Python's, not of an installed package."""
    if file.startswith("<") and not file.startswith(("<stdin>", "<ipython")):
        return False
    apart = (_OWN, sysconfig.get_path("stdlib"))
    return not file.startswith(apart) and not any(part in Path(file).parts for part in _INSTALLED)


def raised_in(exc: BaseException) -> bool:
    """Return whether an exception comes from, or through, a user's code."""
    if isinstance(exc, SyntaxError) and exc.filename is not None:
        return is_users_file(exc.filename)
    return any(is_users_file(frame.filename) for frame in traceback.extract_tb(exc.__traceback__))


def users_line() -> str:
    """Return file and line of the user's code that called fedloom, as the beginning of a message; empty without any."""
    frame = sys._getframe(1)
    while frame is not None and not is_users_file(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]  # the outermost has none
    return "" if frame is None else f"{frame.f_code.co_filename}, line {frame.f_lineno}: "


def _place(exc: BaseException, file: str | None) -> str:
    if isinstance(exc, SyntaxError) and exc.filename is not None:
        return f"{exc.filename}, line {exc.lineno}: "
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        if frame.filename == file or (file is None and is_users_file(frame.filename)):
            return f"{frame.filename}, line {frame.lineno}: "
    return "" if file is None else f"{file}: "
