"""A copy of fedloom from which methods are taken out, one after another, with those that build on them.

`python removed_methods.py COPY [NAME …]` checks each of these (all, if none is named) in a child of this process, which
has the large third parties loaded once. COPY is a folder that holds a copy of the package `fedloom`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

KINDS = ("strategies", "selection", "workloads", "monitors")
_LARGE = ("torch", "ray", "flwr.common", "snntorch", "transformers", "scipy.stats", "sklearn.datasets", "rich.console")
_IMPORT = re.compile(r"^\s*(?:from|import) fedloom\.(?:strategies|selection|workloads|monitors)\.\w+", re.MULTILINE)
_MEDIAN = Path(__file__).parents[2] / "examples" / "coordinate_median.py"
LONGEST_S = 15.0
"""Seconds of a core that one check may take."""


def methods(package: Path) -> dict[str, Path]:
    """Every plug-in's folder or module, by `kind.name`; libraries, whose names begin with an underscore, are none."""
    found = {}
    for kind in KINDS:
        for path in sorted((package / kind).iterdir()):
            if not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py"):
                found[f"{kind}.{path.stem}"] = path
    return found


def builds_on(found: dict[str, Path]) -> dict[str, set[str]]:
    """For each method those that import it, directly or over others."""
    imported = {
        name: {each.split("fedloom.")[1] for each in _IMPORT.findall(_text(path))} for name, path in found.items()
    }
    above = {name: {other for other in found if other != name and name in imported[other]} for name in found}
    while True:
        wider = {name: others.union(*(above[each] for each in others)) for name, others in above.items()}
        if wider == above:
            return above
        above = wider


def _text(path: Path) -> str:
    files = path.rglob("*.py") if path.is_dir() else [path]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@contextlib.contextmanager
def without(paths: list[Path], aside: Path) -> Iterator[None]:
    """Move folders away, and back."""
    moved = [(path, aside / f"{index}-{path.name}") for index, path in enumerate(paths)]
    for path, place in moved:
        shutil.move(path, place)
    try:
        yield
    finally:
        for path, place in moved:
            shutil.move(place, path)


def check(copy: Path) -> None:
    """Import every module, list everything, make one short run."""
    import fedloom
    from fedloom import api
    from fedloom.cli import main
    from fedloom.core import registry
    from fedloom.core.config import Experiment

    assert Path(fedloom.__file__).is_relative_to(copy), fedloom.__file__
    for module in pkgutil.walk_packages(fedloom.__path__, "fedloom."):
        if not module.name.endswith("__main__"):
            _import(module.name)
    assert main(["list"]) == 0
    selections = registry.names("selection")
    base = {
        "rounds": 1,
        "clients": 4,
        "cohort": 2,
        "strategy": "fedavg" if "fedavg" in registry.names("strategies") else str(_MEDIAN),
        "selection": "uniform" if "uniform" in selections else "data_size",
        "workload": "fedloom.testing.linear",
        "runtime": {"name": "inline"},
    }
    assert api.run(Experiment.parse(base), keep=False).summary.rounds == 1


def _import(name: str) -> None:
    """Import a module, unless it needs a package of an extra that is not installed here."""
    from fedloom.core.extras import EXTRAS

    try:
        importlib.import_module(name)
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in EXTRAS or importlib.util.find_spec(package) is not None:
            raise


def _in_child(copy: Path) -> tuple[bool, float]:
    """Whether `check` passes, in a process of its own, and how many seconds of a core that takes."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with (copy / "out.txt").open("w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
                check(copy)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status) == 0, used.ru_utime + used.ru_stime


def main() -> int:
    copy = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(copy))
    for name in _LARGE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    aside = copy / "aside"
    aside.mkdir()
    found = methods(copy / "fedloom")
    above, failed = builds_on(found), []
    for name in sys.argv[2:] or found:
        with without([found[name], *(found[each] for each in sorted(above[name]))], aside):
            passed, seconds = _in_child(copy)
        print(f"{name}: {'passed' if passed else 'FAILED'} in {seconds:.1f} s, with {sorted(above[name])}", flush=True)
        if not passed or seconds > LONGEST_S:
            failed.append(name)
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
