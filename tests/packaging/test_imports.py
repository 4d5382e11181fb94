"""The import contracts of pyproject.toml: none is broken by an import that is allowed, each by one that is not."""

from __future__ import annotations

import graphlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]

PLANTED = {
    "packages import only packages below them, and every package has its place": {
        "core/planted_layer.py": "import fedloom.server.log",
        "reporting/planted_layer.py": "import fedloom.strategies.fedavg.strategy",
        "planted/__init__.py": "",
    },
    "client, server and the kinds of plug-ins do not know each other": {
        "selection/planted/selection.py": "import fedloom.workloads._torch.scope",
        "server/planted_part.py": "def late():\n    import fedloom.strategies.mano.monitor.score",
    },
    "no import cycle between the parts of any package": {
        "server/store/planted_cycle.py": "import fedloom.server.rounds.loop",
    },
    "of a plug-in, report.py and study.py alone import reporting": {
        "strategies/planted/strategy.py": "from fedloom.reporting.run_folder import RunFolder",
    },
    "the wire code is imported by the gRPC services and channels": {
        "client/planted_wire.py": "from fedloom.proto.v1 import fleet_pb2",
        "server/planted_wire.py": "from fedloom.proto.v1 import codec",
    },
    "gRPC is imported by the services, the channels and the wire code": {
        "server/rounds/planted_grpc.py": "import grpc",
    },
    "Ray is imported by the Ray runtime": {
        "studies/planted_ray.py": "import ray.util",
    },
    "Flower is imported by its adapter and the data partitioners": {
        "strategies/planted/flowery.py": "from flwr.serverapp.strategy import FedAvg",
    },
    "PyTorch is imported by workloads and by the client halves of strategies": {
        "strategies/planted/torching.py": "def late():\n    import torch",
    },
    "a workload in a method's folder is imported by itself alone": {
        "strategies/planted/reaching.py": "def late():\n    import fedloom.strategies.mano.workload.sets",
    },
    "core, server and client reach no Ray, no Flower and no PyTorch, whoever is in between": {
        "core/planted_between.py": "import torch.nn",
        "server/planted_above.py": "from fedloom.core import planted_between",
    },
}
"""For each contract, modules that break it: files below `src/fedloom`, and what is in them."""

CYCLE = ".store -> .rounds"
"""How the cycle that `planted_cycle` makes is told: by the packages, not by the module."""


def names(files: Iterable[str]) -> set[str]:
    return {"fedloom." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What `lint-imports` says of each broken contract, in a copy of the tree that has every planted module."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for files in PLANTED.values():
        for name, content in files.items():
            path = copy / "src" / "fedloom" / name
            path.parent.mkdir(exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(content + "\n", encoding="utf-8")
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    found = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert found.returncode == 1, found.stdout + found.stderr
    _, _, reported = found.stdout.partition("Broken contracts")
    sections = re.split(rf"^({'|'.join(map(re.escape, PLANTED))})\n-+$", reported, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


@pytest.mark.parametrize("contract", PLANTED)
def test_each_contract_is_broken_by_a_new_module_that_nobody_listed(broken: Mapping[str, str], contract: str) -> None:
    text = broken[contract]
    for module in names(PLANTED[contract]):
        reported = CYCLE if module.endswith("planted_cycle") else module
        assert re.search(rf"(?<![\w.]){re.escape(reported)}(?![\w.])", text), f"{module} is not in:\n{text}"


def test_no_contract_is_broken_by_a_module_of_the_tree(broken: Mapping[str, str]) -> None:
    planted = {name for files in PLANTED.values() for name in names(files)}
    reported = "".join(broken.values())
    assert set(re.findall(r"(fedloom[\w.]*) -> ", reported)) <= planted
    assert set(re.findall(r"No cycles are allowed in ([\w.]+)\.\n", reported)) == {"fedloom", "fedloom.server"}


def test_no_two_modules_import_each_other_even_late_or_for_types() -> None:
    graph = grimp.build_graph("fedloom", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert imports["fedloom.server.rounds.loop"]
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules of a cycle
