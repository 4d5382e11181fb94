"""Optional packages: none is imported where a server, an agent or a report does not need it; a missing one is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedloom.core.errors import PackageMissing
from fedloom.core.extras import EXTRAS, needed_by

BLOCKED = """
import importlib, sys
from fedloom.core import registry
from fedloom.core.extras import EXTRAS
from fedloom.core.kinds import Kind

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
HOSTS_FLOWER = {("flower", "strategy"), ("flower_app", "strategy")}  # their method is somebody else's package
for kind in Kind:
    for name in registry.names(kind):
        for part in ("config", "accumulator", *kind.parts):
            ref = registry.PartRef(kind, name, part)
            if part != "workload" and (name, part) not in HOSTS_FLOWER and ref.exists():
                ref.load()
for module in ("server.app", "cli.app", "client.app", "api", "studies.api", "reporting", "simulation.process"):
    importlib.import_module(f"fedloom.{module}")
print("all imported")
"""


def test_servers_agents_and_reports_import_no_optional_package() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, encoding="utf-8", check=False)
    assert done.stdout.strip() == "all imported", done.stderr


def test_a_strategy_loads_no_report_code() -> None:
    loaded = "[m for m in sys.modules if m.startswith('fedloom.reporting')]"
    code = f"import sys, fedloom.strategies.flora.strategy; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    says = r"workload 'x' needs the package 'snntorch'.*'fedloom\[spiking\]'"
    with pytest.raises(PackageMissing, match=says), needed_by("workload 'x'"):
        raise ModuleNotFoundError("No module named 'snntorch.functional'", name="snntorch.functional")


def test_other_missing_modules_are_left_alone() -> None:
    with pytest.raises(ModuleNotFoundError, match="mine"), needed_by("workload 'x'"):
        raise ModuleNotFoundError("No module named 'mine'", name="mine")


def test_every_extra_is_declared() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])


SESSION = """
set -e
fedloom serve --port 0 --state srv >serve.log 2>&1 & server=$!
trap 'kill $server $client 2>/dev/null || true' EXIT
for i in $(seq 100); do [ -f srv/admin/server.json ] && break; sleep 0.1; done
fedloom token create --name lab --out lab.token --identity srv/admin
fedloom join - <lab.token --identity lab --allow numpy_linear
fedloom client --identity lab >client.log 2>&1 & client=$!
run=$(fedloom submit x.toml --identity srv/admin)
fedloom watch "$run" --identity srv/admin
fedloom run x.toml --runtime inline --out local
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_core_alone_serves_joins_and_runs_a_numpy_workload(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/pip", "install", "--quiet", root], check=True)
    installed = subprocess.run(
        [venv / "bin/pip", "list"], capture_output=True, encoding="utf-8", check=True
    ).stdout.lower()
    assert not {"torch", "ray", "flwr", "datasets", "transformers"} & set(installed.split())
    site = next((venv / "lib").glob("python*/site-packages"))
    (site / "numpy_linear.py").write_text(
        (root / "src/fedloom/testing/linear.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    info = site / "numpy_linear-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy-linear\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[fedloom.workloads]\nnumpy_linear = numpy_linear\n", encoding="utf-8")
    toml = 'rounds = 2\nclients = 4\nstrategy = "fedavg"\nworkload = "numpy_linear"\n'
    (tmp_path / "x.toml").write_text(toml, encoding="utf-8")
    environment = {"PATH": f"{venv / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", SESSION], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    logs = "".join(
        (tmp_path / name).read_text(encoding="utf-8")
        for name in ("serve.log", "client.log")
        if (tmp_path / name).exists()
    )
    assert done.returncode == 0, done.stdout + done.stderr + logs
    missing = subprocess.run(
        ["fedloom", "run", "digits-fedavg"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert missing.returncode == 2 and "pip install 'fedloom[" in missing.stderr, missing.stderr
