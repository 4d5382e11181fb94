"""An app as a file, what it asks for, and what it prints."""

import hashlib
import json
import logging
import zipfile
from pathlib import Path

import pytest

from fedloom import api
from fedloom.cli import main
from fedloom.core.errors import ConfigError, UnknownName
from fedloom.strategies.flower.apps import Manifest, unmet_dependencies


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))


def bundle(apps: Path, target: Path, *, spoil: str = "", extra: str = "") -> Path:
    """The quickstart app as Flower's hub hands apps out."""
    folder = apps / "quickstart"
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".toml")]
    lines = []
    with zipfile.ZipFile(target, "w") as made:
        for path in files:
            name, content = str(path.relative_to(folder)), path.read_bytes()
            lines.append(f"{name},{hashlib.sha256(content).hexdigest()},{len(content) * 8}")
            made.writestr(name, content + (b"# changed" if name == spoil else b""))
        made.writestr(".info/CONTENT", "\n".join([*lines, *([extra] if extra else [])]))
    return target


def test_a_bundle_is_the_app_in_its_folder(apps: Path, tmp_path: Path) -> None:
    from_file = api.load(bundle(apps, tmp_path / "app.fab"), ["runtime.name=inline"])
    again = api.load(tmp_path / "app.fab")
    assert from_file.workload.app == again.workload.app, "unpacked once"  # type: ignore[attr-defined]
    runs = [api.run(one, keep=False) for one in (from_file, api.load(apps / "quickstart", ["runtime.name=inline"]))]
    assert runs[0].summary.model_sha256 == runs[1].summary.model_sha256


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spoil": "quickstart/task.py"}, "task.py is not the file that .info/CONTENT lists"),
        ({"extra": "../../evil.py,00,8"}, "lists '../../evil.py', which is not a file of the bundle"),
        ({"extra": "/etc/passwd,00,8"}, "lists '/etc/passwd'"),
        ({"extra": "absent.py,00,8"}, "lists 'absent.py'"),
    ],
)
def test_a_bundle_that_was_changed_is_refused(apps: Path, tmp_path: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        api.load(bundle(apps, tmp_path / "app.fab", **changes))
    assert says in str(refused.value)
    assert not list((tmp_path / "cache").rglob("*.py")), "nothing of it stays"


def test_a_file_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    (tmp_path / "app.fab").write_bytes(b"not a zip")
    with pytest.raises(ConfigError, match=r"app\.fab: cannot be read as a Flower app's bundle"):
        api.load(tmp_path / "app.fab")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UnknownName, match="no plug-in makes an experiment of"):
        api.load(tmp_path / "notes.txt")


def test_the_manifest_stands_for_its_folder(apps: Path) -> None:
    one, other = (api.load(path) for path in (apps / "quickstart" / "pyproject.toml", apps / "quickstart"))
    assert one.workload == other.workload


def test_what_an_app_asks_for_and_is_not_here_is_named_at_once(apps: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = ("numpy>=1", "numpy<1", "no-such-package==2", "other ; python_version < '3'", "??")
    manifest = Manifest(name="x", serverapp="a:b", clientapp="a:b", config={}, dependencies=wanted, supernodes=None)
    unmet = unmet_dependencies(manifest)
    assert [text.split(" (")[0] for text in unmet[:2]] == ["numpy<1", "no-such-package==2"]
    assert "is installed" in unmet[0] and "not installed" in unmet[1] and "'??'" in unmet[2] and len(unmet) == 3
    with caplog.at_level(logging.WARNING):
        api.load(apps / "quickstart")
    assert "versions that are not here" not in caplog.text


def test_with_json_stdout_is_one_object(apps: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(apps / "quickstart"), "--runtime", "inline", "--set", "rounds=1", "--json"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["status"] == "done" and shown.err
