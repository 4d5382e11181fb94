"""The wheel, installed away from the checkout, is a whole fedloom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("server", "client", "strategies", "simulation", "workloads")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without isolation: what builds it is in the lock file, so no network is needed."""
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "fedloom"
    ignore = ("--exclude=.git", "--exclude=.venv", "--exclude=runs", "--exclude=*.egg-info", "--exclude=build")
    source.mkdir()
    archive = subprocess.run(["tar", *ignore, "-C", str(ROOT), "-c", "."], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-C", str(source), "-x"], input=archive, check=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(build, check=True, timeout=170)
    return next(out.glob("fedloom-*.whl"))


def test_it_holds_what_the_source_tree_has(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    suffixes = {".py", ".toml", ".md", ".css", ".js", ".pyi", ".typed"}
    wanted = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "fedloom").rglob("*")
        if path.is_file() and (path.suffix in suffixes or path.name == "py.typed") and "__pycache__" not in path.parts
    }
    assert wanted <= packed
    assert not [name for name in packed if name.split("/")[0] in ROOMS]


def test_it_runs_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(home)
    code = (
        "import fedloom, json, sys; from pathlib import Path\n"
        f"assert Path(fedloom.__file__).is_relative_to({str(home)!r}), fedloom.__file__\n"
        "from fedloom.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["run", "digits-fedavg", "--runtime", "process", "--workers", "1", "--set", "rounds=2", "--json"]
    # -I keeps the checkout off the path; the editable install in this environment comes after what is inserted here.
    bootstrap = f"import sys; sys.path.insert(0, {str(home)!r}); exec({code!r})"
    environment = {**os.environ, "PYTHONPATH": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", bootstrap, *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rounds"] == 2 and (tmp_path / result["run_dir"] / "report.html").is_file()


def test_importing_it_costs_nothing() -> None:
    code = "import sys, fedloom; print([m for m in ('torch', 'ray', 'grpc', 'flwr', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_at_the_top_are_links(room: str) -> None:
    link = ROOT / room
    assert link.is_symlink() and not link.readlink().is_absolute()
    assert link.resolve() == ROOT / "src" / "fedloom" / room
