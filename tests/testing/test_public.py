"""`fedloom.testing` needs no package of the development environment, and loads nothing heavy."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import fedloom.testing

MODULES = sorted(f"fedloom.testing.{module.name}" for module in pkgutil.iter_modules(fedloom.testing.__path__))
CODE = """
import importlib, sys
for name in ("pytest", "_pytest", "hypothesis", "psutil", "yaml", "jsonschema"):
    sys.modules[name] = None  # importing it raises
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({"torch", "ray", "flwr", "transformers"} & set(sys.modules)))
"""


def test_every_module_is_importable_without_pytest_and_loads_no_framework() -> None:
    assert "fedloom.testing.strategy" in MODULES
    done = subprocess.run([sys.executable, "-c", CODE, *MODULES], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_the_packages_docstring_names_every_module() -> None:
    assert fedloom.testing.__doc__ is not None
    assert [name for name in MODULES if f"`{name.rpartition('.')[2]}`" not in fedloom.testing.__doc__] == []
