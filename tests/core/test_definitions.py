"""Presets and studies by name: those in fedloom, in the folders of its methods, and in installed packages."""

import sys
from pathlib import Path

import pytest

from fedloom import api
from fedloom.core import definitions
from fedloom.core.errors import ConfigError
from fedloom.studies import definition_files

PRESET = """# A tiny preset of somebody else
name = "tiny"
rounds = 1
clients = 2
strategy = "fedavg"
workload = "image_classification"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that two entry points name."""
    package, info = tmp_path / "tiny_paper", tmp_path / "tiny_paper-1.0.dist-info"
    for folder in (package / "presets", package / "studies", info):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    (package / "presets" / "tiny.toml").write_text(PRESET, encoding="utf-8")
    (package / "studies" / "tiny-study.toml").write_text('title = "Tiny"\nbase = "tiny"\n', encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny_paper\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[fedloom.strategies]\ntiny = tiny_paper\nsame = tiny_paper\nobject = tiny_paper:thing\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_files_of_an_installed_package_are_found_and_it_is_not_imported(site: Path) -> None:
    assert api.preset_path("tiny") == site / "tiny_paper" / "presets" / "tiny.toml"
    assert api.load("tiny", ["rounds=3"]).rounds == 3
    assert definition_files.titles()["tiny-study"] == "Tiny"
    assert "tiny_paper" not in sys.modules


def test_files_of_the_platform_and_of_its_methods_are_found() -> None:
    root = Path(api.__file__).parent
    for what, name, folder in (
        ("presets", "digits-fedavg", "presets"),
        ("presets", "meat", "strategies/meat/presets"),
        ("studies", "sfedca", "strategies/sfedca/studies"),
    ):
        files = definitions.found("presets" if what == "presets" else "studies")
        assert files[name] == root / folder / f"{name}.toml"
        assert list(files) == sorted(files)


def test_two_files_of_one_name_are_an_error_that_names_both(site: Path) -> None:
    second = site / "tiny_paper" / "presets" / "digits-fedavg.toml"
    second.write_text(PRESET, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"presets: two files are named 'digits-fedavg'") as caught:
        api.presets()
    first = Path(api.__file__).parent / "presets" / "digits-fedavg.toml"
    assert str(first) in str(caught.value) and str(second) in str(caught.value)
