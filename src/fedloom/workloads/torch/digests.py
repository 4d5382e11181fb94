"""Digests of Python objects: of the source of code, of weights, of data. Equal objects have equal digests elsewhere."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from fedloom.core.plugin_faults import is_users_file
from fedloom.workloads._base.classes import HasTargets
from fedloom.workloads._torch.arrays import as_array
from fedloom.workloads._torch.whole import travelling

_DEEPEST = 12
"""Objects inside objects that are looked into."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


class CodeDigest:
    """Digest of the source of functions, classes and modules, and of what they refer to.

    Of the user's own classes and functions the source counts, of installed ones the name. Where there is no source, as
    in an interactive session, the compiled code counts.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._seen = dict[int, object]()
        """Objects that were looked into; they stay alive, so that their identities are unique."""

    def add(self, value: object, depth: int = 0) -> None:
        """Add an object."""
        if isinstance(value, _PLAIN):
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, np.ndarray | Tensor):
            self._say("array", array_digest(value))
        elif id(value) in self._seen or depth > _DEEPEST:
            self._say("again", type(value).__qualname__)
        else:
            self._seen[id(value)] = value
            self._look_into(value, depth + 1)

    def hexdigest(self) -> str:
        """Return the digest so far."""
        return self._hash.hexdigest()

    def _look_into(self, value: object, depth: int) -> None:
        match value:
            case nn.Module():
                self._module(value, depth)
            case types.FunctionType():
                self._function(value, depth)
            case types.MethodType():
                self.add(value.__func__, depth)
                self.add(value.__self__, depth)
            case functools.partial():
                self._all((value.func, *value.args, dict(value.keywords)), depth)
            case type():
                self._class(value, depth)
            case Mapping():
                self._all((each for item in value.items() for each in item), depth)
            case list() | tuple():
                self._all(value, depth)
            case set() | frozenset():
                self._say("set", repr(sorted(map(repr, value))))
            case types.ModuleType() | types.BuiltinFunctionType():
                self._say("named", value.__name__)
            case _:
                self._class(type(value), depth)
                self.add(vars(value) if hasattr(value, "__dict__") else (), depth)

    def _module(self, value: nn.Module, depth: int) -> None:
        """Add a model: the classes and settings of its parts, and its arrays' shapes; weights count elsewhere."""
        for name, part in value.named_modules():
            own = {key: each for key, each in vars(part).items() if not key.startswith("_")}
            self._say("module", name)
            self._class(type(part), depth)
            self.add({key: each for key, each in own.items() if not isinstance(each, Tensor | nn.Module)}, depth)
        sent = travelling(value)
        for name, tensor in value.state_dict(keep_vars=True).items():
            self._say(name, f"{tensor.dtype}{tuple(tensor.shape)}")
            if name not in sent:
                self._say("frozen", array_digest(tensor))

    def _function(self, value: types.FunctionType, depth: int) -> None:
        self._say("function", value.__qualname__)
        if not is_users(value):
            self._say("of", value.__module__)
            return
        if value.__name__ == "<lambda>" or not _source(value):  # a lambda's source has the call around it
            self._code(value.__code__, depth)
        else:
            self._source(value)
        self.add(value.__defaults__ or (), depth)
        self.add(value.__kwdefaults__ or {}, depth)
        names = sorted(_globals_of(value.__code__) & value.__globals__.keys())
        self._all((value.__globals__[name] for name in names), depth)
        for cell in value.__closure__ or ():
            try:
                self.add(cell.cell_contents, depth)
            except ValueError:  # a cell that is not filled yet
                self._say("cell", "empty")

    def _class(self, value: type, depth: int) -> None:
        for kind in value.__mro__:
            self._say("class", kind.__qualname__)
            if not is_users(kind) or (kind is not value and id(kind) in self._seen):
                continue
            self._seen[id(kind)] = kind
            self._source(kind)
            for name, member in sorted(vars(kind).items()):
                if isinstance(member, types.FunctionType):
                    self._say("method", name)
                    self.add(member, depth)

    def _source(self, value: type | types.FunctionType) -> None:
        self._say("source", _source(value))

    def _code(self, code: types.CodeType, depth: int) -> None:
        """Add compiled code, without line numbers."""
        self._say("code", code.co_code.hex())
        self._say("names", repr((code.co_names, code.co_varnames)))
        for each in code.co_consts:
            if isinstance(each, types.CodeType):
                self._code(each, depth)
            elif not isinstance(each, str):
                self.add(each, depth)

    def _all(self, values: Iterable[object], depth: int) -> None:
        for each in values:
            self.add(each, depth)

    def _say(self, what: str, value: str) -> None:
        self._hash.update(f"{what}\0{len(value)}\0{value}\0".encode())


def _globals_of(code: types.CodeType) -> set[str]:
    """Return the names that code, and code inside it, reads from its module."""
    found = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_globals_of(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def is_users(value: type | types.FunctionType) -> bool:
    """Return whether code is the program's own: neither Python's, nor fedloom's, nor of an installed package."""
    try:
        file = inspect.getsourcefile(value) or ""
    except (TypeError, OSError):  # a class without a file: builtin, or of an interactive session or a notebook
        return value.__module__ == "__main__"
    return value.__module__ == "__main__" if not file else is_users_file(file)


def _source(value: type | types.FunctionType) -> str:
    try:
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        return ""


def code_digest(values: Iterable[object]) -> str:
    """Return the digest of a run's code: model, loss, metrics and the like, in this order."""
    digest = CodeDigest()
    for value in values:
        digest.add(value)
    return digest.hexdigest()


def weights_digest(model: object) -> str:
    """Return the digest of a model's arrays; of the name of a class or function that makes one."""
    found = hashlib.sha256()
    if not isinstance(model, nn.Module):
        found.update(repr(getattr(model, "__qualname__", type(model).__qualname__)).encode())
        return found.hexdigest()
    for name, tensor in model.state_dict().items():
        found.update(f"{name}\0{array_digest(tensor)}\0".encode())
    return found.hexdigest()


def array_digest(value: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | Tensor) -> str:
    """Return the digest of an array's dtype, shape and values."""
    array = as_array(value.detach().cpu().contiguous()) if isinstance(value, Tensor) else np.ascontiguousarray(value)
    found = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    found.update(array.tobytes() if array.dtype.kind == "O" or not array.flags.c_contiguous else array.data.cast("B"))
    return found.hexdigest()


def data_digest(values: Iterable[object]) -> str:
    """Return the digest of sources of examples; see `Objects.data`."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, tuple | list):
            found.update(f"{type(value).__name__}{len(value)}{data_digest(value)}".encode())
        elif isinstance(value, np.ndarray | Tensor):
            found.update(array_digest(value).encode())
        elif isinstance(value, Dataset):
            targets = np.asarray(value.targets) if isinstance(value, HasTargets) else np.zeros(0)
            found.update(f"{len(value)} {array_digest(targets)}".encode())  # type: ignore[arg-type]
        elif value is None or not callable(value):
            found.update(repr(value).encode())
        else:
            found.update(code_digest([value]).encode())
    return found.hexdigest()
