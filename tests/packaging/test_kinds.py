"""A new kind of plug-ins is one row of the table of kinds: it is listed, configured, guarded and documented."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fedloom

ROW = '    SINK = "sinks", "sink", {"sink": ("config",)}, None\n'
CONFIG = '''
from fedloom.core.config import PluginSettings
from fedloom.core.setting_types import DataPath

class Config(PluginSettings):
    """Where events go."""

    name: str = "bell"
    volume: int = 3
    """How loud."""
    file: DataPath = ""
'''
SCRIPT = """
import sys
from pathlib import Path

from fedloom.cli import main
from fedloom.cli.reference.settings import render
from fedloom.client.guard import Guard
from fedloom.client.policy import Policy
from fedloom.client.usage import Usage
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, Forbidden, PolicyRefused, UnknownName
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.plugins import build_value, parts_named
from fedloom.core.registry import PartRef
from fedloom.server.access.submission import check_submission

def refused(error, call, *words):
    try:
        call()
    except error as exc:
        assert all(word in str(exc) for word in words), str(exc)
    else:
        raise AssertionError(f"no {error.__name__}")

base = {"rounds": 1, "strategy": "fedavg", "workload": "image_classification"}
rung = {**base, "sink": {"name": "bell", "volume": 5}}
made = Experiment.parse(rung)
assert made.to_dict()["sink"] == {"name": "bell", "volume": 5, "file": ""}
assert Experiment.parse(made.to_dict()) == made and made.fingerprint() != Experiment.parse(base).fingerprint()
assert "sink" not in Experiment.parse(base).to_dict()
assert Experiment.parse({**base, "sink": "bell"}).override(["sink.volume=9"]).to_dict()["sink"]["volume"] == 9
refused(ConfigError, lambda: Experiment.parse({**base, "sink": {"name": "bell", "volum": 1}}), "sink.volume")
refused(UnknownName, lambda: Experiment.parse({**base, "sink": "bel"}), "did you mean 'bell'")

guard = Guard(Policy.model_validate({"workloads": {"image_classification": {}}}), Usage(Path(sys.argv[1]) / "usage"))
guard.admit_experiment(made.for_nodes())
guard.admit_experiment(Experiment.parse(base).for_nodes())
refused(PolicyRefused, lambda: guard.admit_experiment({**base, "selection": "uniform", "sink": "./mine.py"}), "mine.py")
check_submission(rung, ())
refused(Forbidden, lambda: check_submission({**base, "sink": "./mine.py"}, ()), "sinks")
refused(Forbidden, lambda: check_submission({**base, "sink": {"name": "bell", "file": "x"}}, ()), "sink.file", "path")

assert [ref.kind for ref in parts_named(rung, "report")] == [SECTIONS["sink"]]
assert build_value(PartRef(Kind("sinks"), "bell", "sink"), str, made) == "ding"
page = render()
assert "## Sinks" in page and "`sink.volume`" in page and "How loud." in page
sys.exit(main(["list", "sinks"]))
"""


def test_a_row_is_all_a_new_kind_needs(tmp_path: Path) -> None:
    package = tmp_path / "fedloom"
    source = Path(fedloom.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    table = package / "core" / "kinds.py"
    before, mark, after = table.read_text(encoding="utf-8").partition("\n\nSECTIONS: ")
    table.write_text(before.rstrip() + "\n" + ROW + "\n" + mark + after, encoding="utf-8")
    bell = package / "sinks" / "bell"
    bell.mkdir(parents=True)
    (package / "sinks" / "__init__.py").write_text("", encoding="utf-8")
    (bell / "__init__.py").write_text('"""Rings a bell."""\n', encoding="utf-8")
    (bell / "config.py").write_text(CONFIG, encoding="utf-8")
    (bell / "sink.py").write_text("def build_sink(config):\n    return 'ding'\n", encoding="utf-8")
    (bell / "report.py").write_text("def build_report(run):\n    return None\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bell" in done.stdout and "Rings a bell." in done.stdout
