"""Code by name and SHA-256: its text, and the store that content comes from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fedloom.core import registry
from fedloom.core.code_names import CodeName, keep_in_store, stored
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, UnknownName
from fedloom.core.kinds import Kind
from fedloom.testing.linear import __file__ as LINEAR

HEX = "ab" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "name", "attribute", "path"),
    [
        (f"mine.py#sha256={HEX}", "mine.py", "", ""),
        (f"a b#c.py#sha256={HEX}:build", "a b#c.py", "build", ""),
        (f"/srv/x/mine.py#sha256={HEX}:a.b", "mine.py", "a.b", "/srv/x/mine.py"),
        (f"schön.py#sha256={HEX}", "schön.py", "", ""),
    ],
)
def test_a_text_is_read_and_written(text: str, name: str, attribute: str, path: str) -> None:
    code = CodeName.parse(text)
    assert code == CodeName(name, HEX, attribute, path) and str(code) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mine.py",
        f"#sha256={HEX}",
        f" #sha256={HEX}",
        f"..#sha256={HEX}",
        f"x/..#sha256={HEX}",
        f"x/#sha256={HEX}",
        f"mine.py#sha256={HEX[:-1]}",
        f"mine.py#sha256={HEX.upper()}",
        f"mine.py#sha256={HEX}:",
        f"mine.py#sha256={HEX}/x",
        f"a\0b#sha256={HEX}",
        "os:abort",
    ],
)
def test_other_texts_are_none(text: str) -> None:
    assert CodeName.parse(text) is None


def test_what_is_loaded_is_the_copy_of_that_content(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("X = 1\n", encoding="utf-8")
    code = CodeName.of(file)
    assert code == CodeName("mine.py", hashlib.sha256(b"X = 1\n").hexdigest())
    with pytest.raises(UnknownName, match="is not on this machine"):
        stored(code)
    kept = keep_in_store(code, file)
    file.write_text("X = 2\n", encoding="utf-8")
    assert kept == cache / "code" / code.sha256 / "mine.py" and stored(code) == kept
    assert kept.read_bytes() == b"X = 1\n" and kept.parent.stat().st_mode & 0o077 == 0
    with pytest.raises(UnknownName, match="expected code with SHA-256"):
        keep_in_store(CodeName("mine.py", HEX), file)
    assert keep_in_store(code, file) == kept, "what is there needs no original"
    assert [each.name for each in (cache / "code").iterdir()] == [code.sha256], "nothing half made is left"


def test_a_damaged_copy_is_not_loaded_and_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("X = 1\n", encoding="utf-8")
    code = CodeName.of(file)
    kept = keep_in_store(code, file)
    kept.write_text("X = 'other'\n", encoding="utf-8")
    with pytest.raises(UnknownName):
        stored(code)
    assert keep_in_store(code, file).read_bytes() == b"X = 1\n"


def test_a_plugin_is_found_by_name_and_digest() -> None:
    code = CodeName.of(Path(LINEAR))
    with pytest.raises(UnknownName, match="--allow"):
        registry.part("workloads", str(code), "workload")
    kept = keep_in_store(code, Path(LINEAR))
    module = registry.part("workloads", str(code), "workload")
    assert module.__file__ == str(kept)
    ref = registry.PartRef(Kind.WORKLOAD, str(code), "workload")
    assert (ref.origin, ref.installed) == ("file", False)


def test_an_experiment_names_its_code_and_no_path(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "client.py").write_text("app = 1\n", encoding="utf-8")
    experiment = Experiment.parse(
        {
            "rounds": 1,
            "strategy": "fedavg",
            "workload": {"name": "flower", "app": str(app), "clientapp": "client:app"},
        }
    )
    named = experiment.with_code_names()
    listing = f"client.py\0{hashlib.sha256(b'app = 1' + bytes([10])).hexdigest()}\n"
    assert named["workload"]["app"] == f"app#sha256={hashlib.sha256(listing.encode()).hexdigest()}"
    assert str(tmp_path) not in str(experiment.for_nodes(code_names=True))
    located = experiment.with_code_names(paths=True)["workload"]["app"]
    assert located.startswith(f"{app}#sha256=")
    (app / "client.py").unlink()
    app.rmdir()
    assert experiment.with_code_names(missing=True)["workload"]["app"] == str(app)
    with pytest.raises(ConfigError, match=r"workload\.app = .* cannot be read"):
        experiment.with_code_names()
