"""A run's Python objects as bytes for its own workers: over a pipe, or as the argument of a Ray actor."""

from __future__ import annotations

import pickle
import site
import sys
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fedloom.core.errors import UsageError
from fedloom.core.extras import needed_by
from fedloom.core.python_objects import hold, objects_of


def pack(key: str) -> bytes:
    """Return the objects of a key as bytes for `unpack`; code of the user's own modules is in them.

    Raises:
        UsageError: they cannot be pickled.
        PackageMissing: cloudpickle is not installed.
    """
    with needed_by("a run of Python objects in other processes (or use runtime='inline')"):
        import cloudpickle
    objects = objects_of(key)
    try:
        with _own_modules_by_value():
            content: bytes = cloudpickle.dumps(objects)
    except Exception as exc:  # whatever an object's own way of being pickled raises
        raise UsageError(
            f"model, data or a function given with them cannot be sent to workers: {type(exc).__name__}: {exc}. "
            "Build it inside a function (model=make_model, data=load_client), or use runtime='inline'"
        ) from exc
    return pickle.dumps((list(sys.path), key, content))


def unpack(content: bytes) -> None:
    """Make packed objects available in this process."""
    path, key, objects = pickle.loads(content)
    sys.path[:] = path
    hold(key, pickle.loads(objects))


@contextmanager
def _own_modules_by_value() -> Iterator[None]:
    """Pickle the code of modules that are not installed with the objects: a worker may not find them."""
    import cloudpickle

    installed = _installed()
    own = [module for name, module in list(sys.modules.items()) if _is_own(name, module, installed)]
    chosen = [module for module in own if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in chosen:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in chosen:
            cloudpickle.unregister_pickle_by_value(module)


def _is_own(name: str, module: ModuleType | None, installed: Collection[str]) -> bool:
    """Return whether a loaded module is the user's: neither fedloom's nor of an installed package."""
    if module is None or name.partition(".")[0] in ("fedloom", "__main__", "__mp_main__"):
        return False
    file = vars(module).get("__file__")
    if vars(module).get("__name__") != name or not isinstance(file, str):
        return False
    return not any(Path(file).is_relative_to(folder) for folder in installed)


def _installed() -> set[str]:
    """Return the folders of Python's library and of installed packages."""
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return folders | {folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")}
