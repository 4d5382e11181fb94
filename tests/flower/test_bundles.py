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


def _listed(*names: str, content: bytes = b"x") -> str:
    return "\n".join(f"{name},{hashlib.sha256(content).hexdigest()},8" for name in names)


def _zip(target: Path, listed: str, *entries: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    """A zip of anybody's making."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries:
            made.writestr(name, content)
        made.writestr(".info/CONTENT", listed)
    return target


def _bomb(path: Path) -> Path:
    return _zip(path, _listed("a.py", content=bytes(200 << 20)), ("a.py", bytes(200 << 20)))


def _long_list(path: Path) -> Path:
    return _zip(path, "\n" * (64 << 20))


def _many_files(path: Path) -> Path:
    names = [f"{number}" for number in range(11_000)]
    return _zip(path, _listed(*names), *((name, b"x") for name in names))


def _slip(path: Path, name: str) -> Path:
    return _zip(path, _listed(name), (name, b"x"))


def _link(path: Path) -> Path:
    """A link out of the folder, and a file that would be written through it."""
    link = zipfile.ZipInfo("out")
    link.external_attr = 0o120777 << 16
    return _zip(
        path, _listed("out", content=b"/tmp") + "\n" + _listed("out/evil.py"), (link, b"/tmp"), ("out/evil.py", b"x")
    )


def _with_flag(path: Path, bit: int) -> Path:
    """A bundle whose entries claim to be encrypted, or compressed by a method nobody has."""
    _zip(path, _listed("a.py"), ("a.py", b"x"))
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (found := data.find(mark, start)) >= 0:
            if bit:
                data[found + at] |= bit
            else:
                data[found + at + 2] = 99
            start = found + 4
    path.write_bytes(bytes(data))
    return path


def _cut(path: Path) -> Path:
    whole = _zip(path, _listed("a.py", content=bytes(100_000)), ("a.py", bytes(100_000))).read_bytes()
    path.write_bytes(whole[:40] + bytes(20) + whole[60:])
    return path


def _lying_size(path: Path) -> Path:
    """The directory says one byte, the content has twenty megabytes."""
    _zip(path, _listed("a.py"), ("a.py", bytes(20 << 20)))
    data = bytearray(path.read_bytes())
    found = data.find(b"PK\x01\x02")
    data[found + 24 : found + 28] = (1).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    return path


ODD_BUNDLES = {
    "a bomb": _bomb,
    "a list without end": _long_list,
    "files without end": _many_files,
    "up": lambda path: _slip(path, "../evil.py"),
    "up later": lambda path: _slip(path, "a/../../evil.py"),
    "the root": lambda path: _slip(path, "/tmp/evil.py"),
    "two slashes": lambda path: _slip(path, "//tmp/evil.py"),
    "a backslash": lambda path: _slip(path, "..\\evil.py"),
    "a dot": lambda path: _slip(path, "./."),
    "no name": lambda path: _slip(path, " "),
    "a long name": lambda path: _slip(path, "x/" * 300 + "x"),
    "a link": _link,
    "encrypted": lambda path: _with_flag(path, 1),
    "an unknown method": lambda path: _with_flag(path, 0),
    "cut": _cut,
    "a lying size": _lying_size,
}


@pytest.mark.parametrize("what", ODD_BUNDLES)
def test_a_bundle_of_anybodys_making_is_refused_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    bundle = ODD_BUNDLES[what](tmp_path / "app.fab")
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    with pytest.raises(ConfigError, match=r"app\.fab|pyproject"):
        api.load(bundle)
    cache = tmp_path / "cache"
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != " "], "nothing of it stays"
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before
    assert not Path("/tmp/evil.py").exists()


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
