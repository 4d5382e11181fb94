"""What goes into the image, and how it tells whether it is well."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from deploy_files import DEPLOY, ROOT

DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 00000000:1B9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000
   1: 0200000A:C350 0300000A:18EB 01 00000000:00000000 00:00000000 00000000  1000
"""  # 0x1B9E = 7070 listening; a connection to 0x18EB = 6379


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deploy_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


health = _module(DEPLOY / "health.py")
dependencies = _module(DEPLOY / "dependencies.py")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TABLE, encoding="utf-8")
    return tmp_path


def test_health_reads_the_kernels_table(proc: Path) -> None:
    table = health.connections(proc)
    assert table == [(7070, 0, "0A"), (50000, 6379, "01")]
    assert health.healthy("listening", 7070, table) and not health.healthy("listening", 50000, table)
    assert health.healthy("connected", 6379, table) and not health.healthy("connected", 7070, table)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python3 /opt/fedloom/bin/fedloom serve --host 0.0.0.0 --port 8000", ("listening", 8000)),
        ("python3 /opt/fedloom/bin/fedloom serve", ("listening", 7070)),
        ("python3 /opt/fedloom/bin/fedloom client --server example.org:81", ("connected", 81)),
        ("python3 /opt/fedloom/bin/fedloom client", ("connected", 7070)),
        ("python3 /opt/fedloom/bin/ray start --head --block --port=6380", ("listening", 6380)),
        ("python3 /opt/fedloom/bin/ray start --block --address=ray-head:6379", ("connected", 6379)),
    ],
)
def test_health_knows_each_program(command: str, expected: tuple[str, int]) -> None:
    assert health.expected(command.split()) == expected


def test_a_program_that_is_not_there_is_not_well() -> None:
    done = subprocess.run(
        [sys.executable, DEPLOY / "health.py", "listening", "1"], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stderr) == (1, "not listening: port 1\n")


def test_the_image_installs_what_the_project_depends_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = dependencies.requirements(ROOT / "pyproject.toml", ["text"])
    own = [line for line in extras["text"] if not line.startswith("fedloom[")]
    assert wanted == [*project["dependencies"], *extras["torch"], *extras["data"], *own]
    everything = {line for name, lines in extras.items() if name not in ("dev", "attacks") for line in lines}
    named = {line for line in everything if not line.startswith("fedloom[")}
    assert set(dependencies.requirements(ROOT / "pyproject.toml", ["all"])) == {*project["dependencies"], *named}
    assert not [line for line in wanted if re.match(r"(pytest|mypy|ruff|grpcio-tools)\b", line)]
    with pytest.raises(SystemExit, match=r"EXTRAS: expected some of all, attacks, .*, text, .*, got txet"):
        dependencies.requirements(ROOT / "pyproject.toml", ["txet"])


def test_every_package_but_pytorch_is_locked_by_its_hashes() -> None:
    entries = dependencies._entries(ROOT / "requirements.lock")
    assert len(entries) > 100
    for entry in entries:
        first, *hashes = entry.split(" \\\n")
        assert re.fullmatch(r"[\w.-]+==[\w.]+", first), entry
        assert hashes and all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
    torch = dependencies._entries(ROOT / "requirements-torch.lock")
    assert len(torch) == 1 and re.fullmatch(r"torch==[\d.]+", torch[0])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--no-deps --require-hashes -r requirements.lock" in makefile
    assert "--no-deps --require-hashes --requirement locked.txt" in DOCKERFILE


def test_versions_and_hashes_are_taken_from_the_lock(tmp_path: Path) -> None:
    first = "Scikit_Learn==1.8 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11"
    (tmp_path / "a.lock").write_text(f"# a comment\n{first}\nb.c==2 \\\n    --hash=sha256:22\n", encoding="utf-8")
    (tmp_path / "b.lock").write_text("torch==3\n", encoding="utf-8")
    assert dependencies.versions(tmp_path / "a.lock", tmp_path / "b.lock") == [
        "Scikit_Learn==1.8",
        "b.c==2",
        "torch==3",
    ]
    report = tmp_path / "report.json"
    report.write_text('{"install": [{"metadata": {"name": "scikit-learn"}}, {"metadata": {"name": "torch"}}]}', "utf-8")
    assert dependencies.locked(tmp_path / "a.lock", report) == [first]


def _copied() -> set[str]:
    """What the Dockerfile takes from the repository."""
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+)$", DOCKERFILE, re.MULTILINE)
    return {source.rstrip("/") for line in lines for source in line.split()[:-1]}


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == _copied()
    for source in _copied():
        assert (ROOT / source).exists(), source


def test_nothing_secret_is_copied() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *sorted(_copied())],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a checkout of the repository")
    files = listed.stdout.split()
    assert any(file.endswith("cli/app.py") for file in files)
    secret = re.compile(r"(^|/)(\.env|.*\.(pem|key|p12|crt)|token|id_rsa|credentials?(\.\w+)?)$")
    assert not [file for file in files if secret.search(file)]


def test_it_runs_as_nobody_special_and_has_no_compiler() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    last = stages[-1]
    assert len(stages) == 4 and last.startswith("python AS final")
    assert re.search(r"^USER fedloom$", last, re.MULTILINE) and "--uid 1000" in last
    assert not re.search(r"\b(gcc|g\+\+|build-essential|make)\b", DOCKERFILE)
    assert "HEALTHCHECK" in last and "pip uninstall --yes --quiet setuptools pip" in stages[2]
    assert DOCKERFILE.lstrip("# \n").index("ARG BASE_IMAGE=python:3.11-slim-bookworm") < DOCKERFILE.index("FROM")
