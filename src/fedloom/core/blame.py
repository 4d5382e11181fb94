"""Makes errors about a user's plug-in at run time: its file and line first, then what was found and expected."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedloom.core.errors import FedloomError, PluginInvalid
from fedloom.core.plugin_faults import is_users_file, plugin_fault
from fedloom.core.registry import PartRef

_READ_ONLY = "read-only"
"""What NumPy says of an array that must not be written to."""


@dataclass(frozen=True)
class Blame:
    """A user's part: where its methods are, and how it is named."""

    part: object
    """As `core.plugins` built it."""
    ref: PartRef

    @property
    def users(self) -> bool:
        """Return whether the part's code is a user's, so that errors can name a line of it."""
        return is_users_code(self.ref)

    def wrong(self, method: str, found: str) -> PluginInvalid:
        """Return the error for a method's result.

        Args:
            method: its name.
            found: what was found, and what was expected.
        """
        return PluginInvalid(f"{self.place(method)}: {method}: {found}")

    def place(self, method: str) -> str:
        """Return file, line and plug-in of a method; of the class if it is not the plug-in's own."""
        own = vars(type(self.part)).get("wrapped", self.part)
        code: object = own if inspect.isfunction(own) else inspect.getattr_static(type(own), method, type(own))
        code = code.__func__ if isinstance(code, staticmethod | classmethod) else code
        name = f"{self.ref.kind.section} {self.ref.name!r}"
        try:
            target = inspect.unwrap(code) if inspect.isfunction(code) else type(own)
            if not is_users_file(inspect.getsourcefile(target) or ""):  # inherited from a class of fedloom's
                target = type(own)
            return f"{inspect.getsourcefile(target)}, line {inspect.getsourcelines(target)[1]} ({name})"
        except (OSError, TypeError):
            return name

    @contextmanager
    def calling(self, method: str) -> Iterator[None]:
        """Turn an exception of a method into an error with its file and line.

        Raises:
            PluginInvalid: it raised.
        """
        try:
            yield
        except FedloomError:
            raise
        except Exception as exc:
            what = f"{self.ref.kind.section} {self.ref.name!r}, {method}"
            if isinstance(exc, ValueError) and _READ_ONLY in str(exc):
                what = (
                    f"{what}: found a write to an array it was given, expected a new array: copy it first "
                    "(array.copy(), a + b instead of a += b)"
                )
            raise plugin_fault(what, exc) from exc


def is_users_code(ref: PartRef) -> bool:
    """Return whether a part's code is a user's: its own file, or a module that is not installed."""
    if ref.origin == "bundled":
        return False
    return _is_users_module(ref)


@functools.lru_cache(maxsize=64)
def _is_users_module(ref: PartRef) -> bool:
    file: object = vars(ref.load()).get("__file__") if ref.exists() else None
    return isinstance(file, str) and is_users_file(file)


def kind_of(value: object) -> str:
    """Return a value's type, for a message, with what to do for a tensor."""
    if value is None:
        return "None"
    tensor = type(value).__module__.partition(".")[0] == "torch"
    return f"a {type(value).__name__}" + (" (write .detach().cpu().numpy() after it)" if tensor else "")
