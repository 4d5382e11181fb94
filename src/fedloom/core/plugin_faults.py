"""Locates exceptions in plug-ins' code, for errors that name file and line."""

from __future__ import annotations

import traceback

from fedloom.core.errors import PluginInvalid


def plugin_fault(what: str, exc: BaseException, file: str | None = None) -> PluginInvalid:
    """Return the error for an exception in a plug-in's code, with its file and line.

    Args:
        what: the plug-in and the operation, such as `strategy './mine.py' cannot be imported`.
        exc: the exception.
        file: the plug-in's file, whose last line in the traceback is named; None names the last line of the traceback.
    """
    place = _place(exc, file)
    message = exc.msg if isinstance(exc, SyntaxError) else str(exc)
    return PluginInvalid(f"{place}{what}: {type(exc).__name__}: {message}")


def _place(exc: BaseException, file: str | None) -> str:
    if isinstance(exc, SyntaxError) and exc.filename is not None:
        return f"{exc.filename}, line {exc.lineno}: "
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        if frame.filename == file or (file is None and not frame.filename.startswith("<")):
            return f"{frame.filename}, line {frame.lineno}: "
    return "" if file is None else f"{file}: "
