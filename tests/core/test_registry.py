"""Plug-ins by name: folders, entry points of installed packages, modules, files."""

import sys
from pathlib import Path

import pytest

import fedloom
from fedloom.core import plugin_folders, registry
from fedloom.core.errors import PluginInvalid, UnknownName
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.registry import PartRef

PLUGIN = '''"""A strategy of somebody else."""
from fedloom.core.config import PluginSettings

class Config(PluginSettings):
    pass

def build_strategy(config, experiment):
    return "built"
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is installed as a wheel would be: code, and metadata that declares entry points."""
    site = tmp_path / "site"
    package = site / "somebody" / "strategy_folder"
    package.mkdir(parents=True)
    (site / "somebody" / "__init__.py").write_text("", encoding="utf-8")
    (package / "__init__.py").write_text('"""A folder of somebody else."""\n', encoding="utf-8")
    (package / "strategy.py").write_text(PLUGIN, encoding="utf-8")
    (package / "config.py").write_text(PLUGIN, encoding="utf-8")
    (site / "somebody" / "single.py").write_text(PLUGIN, encoding="utf-8")
    (site / "somebody" / "broken.py").write_text("import a_module_nobody_has\n", encoding="utf-8")
    info = site / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[fedloom.strategies]\nsomebodys = somebody.strategy_folder\nwith-hyphen = somebody.single\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(site))
    for name in [name for name in sys.modules if name.split(".")[0] == "somebody"]:
        monkeypatch.delitem(sys.modules, name)
    return site


def test_folders_are_found_without_being_listed_anywhere() -> None:
    found = registry.names("strategies")
    assert {"fedavg", "fedprox", "server_opt"} <= set(found) and list(found) == sorted(found)
    assert "uniform" in registry.names("selection")


def _has_files(path: Path) -> bool:
    """Whether there is more at a path than what Python leaves in a folder whose files have gone."""
    return path.is_file() or any(each.name != "__pycache__" for each in path.iterdir())


@pytest.mark.parametrize("kind", Kind)
def test_every_plug_in_of_fedloom_is_a_folder_with_a_page(kind: Kind) -> None:
    folder = Path(fedloom.__file__).parent / kind
    found = [path for path in folder.iterdir() if not path.name.startswith(("_", ".")) and _has_files(path)]
    assert [path.name for path in found if not (path / "__init__.py").is_file()] == []
    assert [path.name for path in found if not (path / "README.md").is_file()] == []
    assert {path.name for path in found} <= set(registry.names(kind))


def test_a_strategy_of_a_family_has_the_familys_client_half() -> None:
    ref = PartRef(Kind.STRATEGY, "flora", "strategy")
    assert ref.origin == "bundled" and ref.installed and not ref.in_one_file and ref.exists()
    assert registry.has_part("strategies", "flora", "report")
    assert not registry.has_part("strategies", "flora", "rule")
    assert not registry.has_part("strategies", "flora", "accumulator")
    assert registry.summary("strategies", "flora").startswith("FLoRA: ")


def test_modules_that_begin_with_an_underscore_are_no_plug_ins() -> None:
    assert "_accumulators" in plugin_folders.names(Kind.STRATEGY)
    assert not [name for kind in Kind for name in registry.names(kind) if name.startswith("_")]


def test_listing_imports_no_plug_in(installed: Path) -> None:
    assert {"somebodys", "with-hyphen"} <= set(registry.names("strategies"))
    assert "somebody" not in sys.modules


def test_parts_of_a_folder() -> None:
    assert registry.part("strategies", "fedprox", "rule").__name__ == "fedloom.strategies.fedprox.rule"
    assert registry.has_part("strategies", "fedprox", "rule")
    assert not registry.has_part("strategies", "fedavg", "rule")
    with pytest.raises(UnknownName, match=r"'fedavg' has no rule\.py"):
        registry.part("strategies", "fedavg", "rule")
    assert registry.summary("strategies", "fedprox").startswith("FedProx: ")


@pytest.mark.parametrize("name", ["somebodys", "with-hyphen", "somebody.strategy_folder", "somebody.single"])
def test_entry_points_and_modules(installed: Path, name: str) -> None:
    assert registry.part("strategies", name, "strategy").build_strategy(None, None) == "built"
    assert registry.has_part("strategies", name, "strategy")
    assert not registry.has_part("strategies", name, "rule")
    assert registry.summary("strategies", name).startswith("A ")


def test_files_are_loaded_once_and_two_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for folder, word in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PLUGIN.replace('"built"', f'"{word}"'), encoding="utf-8")
    paths = [str(tmp_path / folder / "mine.py") for folder in ("a", "b")]
    parts = [registry.part("strategies", path, "strategy") for path in paths]
    assert [part.build_strategy(None, None) for part in parts] == ["one", "two"]
    assert registry.part("strategies", paths[0], "config") is parts[0]
    assert not registry.has_part("strategies", paths[0], "accumulator")


def test_a_file_that_raises_does_not_stay_half_loaded(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text("raise RuntimeError('on purpose')\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(PluginInvalid, match=r"half\.py, line 1: .*RuntimeError: on purpose"):
            registry.part("strategies", str(path), "strategy")


@pytest.mark.parametrize(
    "name", ["fedagv", "", ".", "..", "no_such.module", "numpy.no_such", "json.no.such", "a-b", "1", "fedloom "]
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(UnknownName, match=r"strategies: unknown name .*available: .*fedavg"):
        registry.part("strategies", name, "strategy")


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'server_opt'\?"):
        registry.part("strategies", "server_opts", "strategy")


def test_a_module_whose_own_import_fails_says_so(installed: Path) -> None:
    with pytest.raises(
        PluginInvalid, match=r"broken\.py, line 1: strategy 'somebody.broken' cannot be imported.*nobody_has"
    ):
        registry.part("strategies", "somebody.broken", "strategy")


def write_plugin(folder: Path, docstring: str) -> None:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f'"""{docstring}"""\n', encoding="utf-8")
    for name in ("config", "strategy", "report"):
        (folder / f"{name}.py").write_text(PLUGIN, encoding="utf-8")


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The strategy `tiny` of a package `tiny_method`, whose folder holds a workload and a monitor, too."""
    site = tmp_path / "site"
    write_plugin(site / "tiny_method", "A method.")
    write_plugin(site / "tiny_method" / "workload", "Its workload.")
    write_plugin(site / "tiny_method" / "monitor", "Its monitor.")
    (site / "tiny_method" / "selection").mkdir()  # no package
    (site / "tiny_method" / "selection" / "config.py").write_text(PLUGIN, encoding="utf-8")
    info = site / "tiny_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny_method\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[fedloom.strategies]\ntiny = tiny_method\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    for name in [name for name in sys.modules if name.split(".")[0] == "tiny_method"]:
        monkeypatch.delitem(sys.modules, name)
    return "tiny"


def test_the_package_of_an_entry_point_holds_plugins_of_other_kinds(method: str) -> None:
    found = {kind.section for kind in Kind if method in registry.names(kind)}
    assert found == {"strategy", "workload", "monitor"}
    assert "tiny_method" not in sys.modules
    for section in found:
        ref = PartRef(SECTIONS[section], method, "config")
        assert (ref.origin, ref.installed) == ("plugin", True)
    assert "tiny_method" not in sys.modules
    assert registry.part("workloads", method, "config").__name__ == "tiny_method.workload.config"
    assert registry.part("strategies", method, "config").__name__ == "tiny_method.config"
    assert registry.has_part("monitors", method, "report") and not registry.has_part("monitors", method, "watch")
    assert [registry.summary(kind, method) for kind in ("strategies", "workloads", "monitors")] == [
        "A method.",
        "Its workload.",
        "Its monitor.",
    ]
    with pytest.raises(UnknownName, match="selection: unknown name 'tiny'"):
        registry.part("selection", method, "config")


def test_a_folder_left_behind_by_a_removed_plugin_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made_up" / "gone" / "__pycache__").mkdir(parents=True)
    (tmp_path / "made_up" / "here").mkdir()
    for folder in ("made_up", "made_up/here"):
        (tmp_path / folder / "__init__.py").touch()
    assert [plugin_folders.is_package(f"made_up.{name}") for name in ("here", "gone", "never")] == [True, False, False]


def test_a_folder_of_fedloom_holds_plugins_of_other_kinds() -> None:
    for kind, section in (("workloads", "workload"), ("monitors", "monitor")):
        ref = PartRef(Kind(kind), "mano", section)
        assert ref.origin == "bundled" and ref.load().__name__ == f"fedloom.strategies.mano.{section}.{section}"
        assert "mano" in registry.names(kind)
    assert PartRef(Kind.SELECTION, "mano", "selection").installed is False
    assert "mano" not in registry.names("selection")
