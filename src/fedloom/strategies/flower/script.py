"""A program that calls `flwr.simulation.run_simulation`: its apps, and what it does after the call.

The program runs in a thread up to its call, which gives the apps and the number of clients, and waits there. When the
run is over, it continues after the call. Agents run it up to the call, too, and leave it there.
"""

from __future__ import annotations

import ast
import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np

from fedloom.core.errors import ConfigError, FedloomError, UnsupportedFeature
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.own_lines import own_line
from fedloom.strategies.flower.seeding import Streams

SUFFIX = ".py"
CALL = "run_simulation"
"""The call; also the first step of the name of what it was given, as in `sim:run_simulation.server_app`."""
_MAIN = "__main__"


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of `run_simulation`."""

    server_app: flwr.ServerApp
    client_app: flwr.ClientApp
    num_supernodes: int
    unused: tuple[str, ...] = ()
    """Other arguments that were given, which have no meaning here."""


class Script:
    """A program, up to its call of `run_simulation` and after it.

    Args:
        path: the program's file.
        shows: let its output through; that of an agent's copy would be shown once for each agent.

    Raises:
        ConfigError: it ended without the call, or raised before it; or the call's arguments are wrong.
        UnsupportedFeature: it calls something else of Flower's that runs an app.
    """

    def __init__(self, path: Path, *, shows: bool) -> None:
        check_source(path)
        self.path, self._shows = path, shows
        self._call: Call | None = None
        self._over = False
        self._error: BaseException | None = None
        self._scripts_turn, self._our_turn = threading.Semaphore(0), threading.Semaphore(0)
        self._streams = Streams.seeded(np.random.default_rng(0))
        threading.Thread(target=self._execute, name="flower-script", daemon=True).start()
        self._resume_program()
        error = self._failure()
        if error is not None:
            raise _as_refusal(error, path)
        if self._call is None:
            raise ConfigError(f"{path}: ended without a call of flwr.simulation.{CALL}, so there is no app to run")

    @property
    def call(self) -> Call:
        """Return what `run_simulation` was given."""
        if self._call is None:
            raise RuntimeError("a program without its call is not made")
        return self._call

    def rest(self) -> str:
        """Run what the program does after the call, once; return why it did not end well, or an empty text."""
        if self._over:
            return ""
        self._resume_program()
        error = self._failure()
        return "" if error is None else f"after {CALL}, {_place(error, self.path)}"

    def _failure(self) -> BaseException | None:
        """Return what the program's thread raised, if anything."""
        return self._error

    @property
    def is_over(self) -> bool:
        """Return whether the program has ended, so that another run needs another execution of it."""
        return self._over

    def called(self, call: Call) -> None:
        """Take the call's arguments and wait for the end of the run; called by the program's thread."""
        if self._call is not None:
            raise UnsupportedFeature(
                f"{CALL} is called a second time; `fedloom run` does one run of a program. Make it a program for each"
            )
        self._call = call
        _lend_names(self._module)
        self._our_turn.release()
        self._scripts_turn.acquire()

    def _resume_program(self) -> None:
        """Let the program run until it waits or ends."""
        quiet = contextlib.nullcontext() if self._shows else contextlib.redirect_stdout(io.StringIO())
        with self._streams.switched_in(), flwr.quiet(), quiet, _arguments([str(self.path)]):
            self._scripts_turn.release()
            self._our_turn.acquire()

    def _execute(self) -> None:
        self._scripts_turn.acquire()
        self._module = ModuleType(_MAIN)
        vars(self._module)["__file__"] = str(self.path)
        try:
            with flwr.simulated_by(self._simulate):
                exec(compile(self.path.read_bytes(), str(self.path), "exec"), vars(self._module))
        except SystemExit as exc:
            self._error = exc if exc.code else None
        except BaseException as exc:
            self._error = exc
        finally:
            self._over = True
            self._our_turn.release()

    def _simulate(self, name: str, values: dict[str, object]) -> None:
        if name != CALL:
            raise UnsupportedFeature(
                f"it calls flwr's {name}, which is not supported; expected flwr.simulation.{CALL}(server_app, "
                "client_app, num_supernodes)"
            )
        self.called(_checked(values))


def loaded(path: Path, *, shows: bool = False, anew: bool = False) -> Script:
    """Return a program at its call, executed once in a process unless it is to be anew or has ended."""
    full = path.resolve()
    known = _loaded.get(full)
    if known is None or anew or known.is_over:
        known = _loaded[full] = Script(full, shows=shows)
    return known


_loaded: dict[Path, Script] = {}


def component(path: Path, attribute: str) -> object:
    """Return what `run_simulation.server_app` or `run_simulation.client_app` stands for in a program."""
    call = loaded(path).call
    parts = {f"{CALL}.server_app": call.server_app, f"{CALL}.client_app": call.client_app}
    if attribute not in parts:
        raise ConfigError(f"{path}: {attribute!r} is none of {', '.join(parts)}")
    return parts[attribute]


def rest_of(path: Path) -> str:
    """Run what a program does after its call; return why it did not end well, or an empty text."""
    known = _loaded.get(path.resolve())
    return "" if known is None else known.rest()


def check_source(path: Path) -> None:
    """Refuse a program that cannot be one run, before anything of it is executed.

    Raises:
        ConfigError: it cannot be read or parsed, or neither it nor a module beside it names `run_simulation`.
        UnsupportedFeature: it calls it in a loop.
    """
    tree = _parsed(path)
    if not (_names_call(tree) or any(_names_call(_parsed(other)) for other in _beside(path, tree))):
        others = sorted({name for name in flwr.OTHER_RUNS if _mentions(tree, name)})
        instead = f"; it calls {', '.join(others)}, which fedloom does not run" if others else ""
        raise ConfigError(
            f"{path}: expected a program that calls flwr.simulation.{CALL}(server_app, client_app, num_supernodes), "
            f"found no such call{instead}. A folder with a pyproject.toml that has [tool.flwr.app] runs as it is"
        )
    for loop in ast.walk(tree):
        if isinstance(loop, ast.For | ast.While) and (line := _called_in(loop)):
            raise UnsupportedFeature(
                f"{path}, line {line}: {CALL} is called in a loop; `fedloom run` does one run of a program. Leave one "
                "pass, and run it once for each"
            )


def _checked(values: dict[str, object]) -> Call:
    """Return a call of the arguments.

    Raises:
        ConfigError: one is missing or of another type.
    """
    server, client, count = (values.pop(name, None) for name in ("server_app", "client_app", "num_supernodes"))
    if not isinstance(server, flwr.ServerApp):
        raise ConfigError(f"{CALL}: server_app: expected a flwr ServerApp, got {type(server).__name__}")
    if not isinstance(client, flwr.ClientApp):
        raise ConfigError(f"{CALL}: client_app: expected a flwr ClientApp, got {type(client).__name__}")
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ConfigError(f"{CALL}: num_supernodes: expected a number of clients from 1, got {count!r}")
    return Call(server, client, int(count), tuple(sorted(name for name, value in values.items() if value)))


def _as_refusal(error: BaseException, path: Path) -> FedloomError:
    if isinstance(error, FedloomError):
        return type(error)(f"{path}: {error}")
    made = ConfigError(f"{path}: ended before its call of {CALL}: {_place(error, path)}")
    made.__cause__ = error
    return made


def _place(error: BaseException, path: Path) -> str:
    hint = ""
    if isinstance(error, SystemExit):
        hint = ". It is run without arguments on its command line"
    elif isinstance(error, ImportError):
        hint = ". Is everything the program needs installed here?"
    return f"{own_line(error, path.parent)}{type(error).__name__}: {error}{hint}"


def _lend_names(module: ModuleType) -> None:
    """Make a program's classes and functions attributes of `__main__`, by which pickles refer to them."""
    main = vars(sys.modules[_MAIN])
    for name, value in vars(module).items():
        if isinstance(value, type | FunctionType) and value.__module__ == _MAIN:
            before = main.get(name)
            if before is None or name in _lent:
                main[name] = value
                _lent.add(name)


_lent: set[str] = set()


@contextlib.contextmanager
def _arguments(values: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, values
    try:
        yield
    finally:
        sys.argv = before


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as exc:
        raise ConfigError(f"{path}: cannot be read as a Python program: {type(exc).__name__}: {exc}") from exc


def _beside(path: Path, tree: ast.Module) -> Iterator[Path]:
    """Yield the files beside a program that it imports."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = path.parent.joinpath(*name.split("."))
            yield from (file for file in (place.with_name(f"{place.name}.py"), place / "__init__.py") if file.is_file())


def _names_call(tree: ast.AST) -> bool:
    return _mentions(tree, CALL)


def _mentions(tree: ast.AST, name: str) -> bool:
    """Return whether a name, an attribute or an import of this name is in a tree."""
    return any(
        (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.alias) and node.name.rpartition(".")[2] == name)
        for node in ast.walk(tree)
    )


def _called_in(loop: ast.For | ast.While) -> int | None:
    """Return the line of a loop's body in which the call is; None if it has none."""
    for statement in loop.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and CALL in (
                node.func.id if isinstance(node.func, ast.Name) else "",
                node.func.attr if isinstance(node.func, ast.Attribute) else "",
            ):
                return node.lineno
    return None
