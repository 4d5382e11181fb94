"""A node's own list of code: only its files and folders, of exactly the content a server names."""

from __future__ import annotations

from pathlib import Path

import pytest
from policies import guard

from fedloom.client.node_code import NodeCode, located
from fedloom.core.code_names import CodeName
from fedloom.core.errors import PolicyRefused
from fedloom.core.messages import Group, GroupKey
from fedloom.testing.linear import __file__ as LINEAR


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "mine.py").write_text("X = 1\n", encoding="utf-8")
    return tmp_path / "lab" / "mine.py"


def refused(code: NodeCode, name: CodeName) -> str:
    with pytest.raises(PolicyRefused) as caught:
        code.find(name, "strategy")
    assert caught.value.kind == "code"
    return str(caught.value)


def test_a_file_its_folder_or_its_digest_lists_it(file: Path, tmp_path: Path) -> None:
    code = CodeName.of(file)
    for listed in (str(file), str(file.parent), "lab/mine.py", "./lab", str(code).replace("mine.py", str(file))):
        found = NodeCode([listed], tmp_path).find(code, "strategy")
        assert found.read_bytes() == b"X = 1\n" and found.is_relative_to(tmp_path / "cache"), listed


def test_nothing_else_does(file: Path, tmp_path: Path) -> None:
    code = CodeName.of(file)
    other = CodeName("mine.py", "0" * 64)
    for listed in ([], ["mine.py"], [str(tmp_path)], ["lab"], ["mine"], [f"{file}#sha256={'0' * 64}"]):
        assert "is not listed here" in refused(NodeCode(listed, tmp_path), code), listed
    said = refused(NodeCode([str(file)], tmp_path), other)
    assert f"the file of that name here has SHA-256 {code.sha256}" in said and str(tmp_path) not in said
    assert "path of another machine" in refused(
        NodeCode([str(file)], tmp_path), CodeName(code.name, code.sha256, path=str(file))
    )


def test_what_the_node_runs_does_not_change_with_the_file(file: Path, tmp_path: Path) -> None:
    code, own = CodeName.of(file), NodeCode([str(file)], tmp_path)
    found = own.find(code, "strategy")
    file.write_text("X = 2\n", encoding="utf-8")
    assert own.find(code, "strategy") == found and found.read_bytes() == b"X = 1\n"
    assert own.find(CodeName.of(file), "strategy").read_bytes() == b"X = 2\n"


@pytest.mark.parametrize("part", ["rule", "measure", "accumulator"])
def test_parts_of_groups_are_found_alike(file: Path, tmp_path: Path, part: str) -> None:
    name = str(CodeName.of(file))
    made = Group(key=GroupKey("r", 1, 0, 0), jobs=(), **({"rules": (name,)} if part == "rule" else {part: name}))
    guard(tmp_path, code=[str(file)]).admit_group(made)
    with pytest.raises(PolicyRefused, match=part):
        guard(tmp_path).admit_group(made)
    path = Group(key=made.key, jobs=(), rules=(str(file),))
    with pytest.raises(PolicyRefused, match="named by name and SHA-256"):
        guard(tmp_path, code=[str(file)]).admit_group(path)


def test_a_workloads_file_is_a_key_of_the_policy(tmp_path: Path) -> None:
    code = CodeName.of(Path(LINEAR))
    values = {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": str(code)}
    own = guard(tmp_path, workloads={LINEAR: {"classes": ["a"]}})
    assert own.admit_experiment(values)["workload"] == {"name": str(code)}
    permissions = own.workload_policy(str(code))
    assert permissions is not None and permissions.classes == ("a",)
    with pytest.raises(PolicyRefused, match="is not allowed here") as caught:
        own.admit_experiment({**values, "workload": LINEAR})
    assert caught.value.kind == "workload"


def test_a_module_listed_in_the_policy_is_a_component_of_an_app(file: Path, tmp_path: Path) -> None:
    app = file.parent
    workload = {"name": "flower", "app": str(CodeName.of(app)), "clientapp": "site_models.client:app"}
    values = {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": workload}
    own = guard(tmp_path, workloads={"flower": {}}, code=[str(app), "site_models.client"])
    assert own.admit_experiment(values)["workload"]["clientapp"] == "site_models.client:app"
    for listed in ("site_models", "client", "site_models.client.app"):
        with pytest.raises(PolicyRefused, match="clientapp"):
            guard(tmp_path, workloads={"flower": {}}, code=[str(app), listed]).admit_experiment(values)


def test_an_app_is_only_what_the_experiment_says_is_one(file: Path, tmp_path: Path) -> None:
    """A folder below the data folder is no code, whatever setting names it."""
    workload = {"name": "mano", "classifier": "mine:build", "app": "$DATA"}
    values = {"rounds": 1, "strategy": "fedavg", "selection": "uniform", "workload": workload}
    with pytest.raises(PolicyRefused, match="classifier"):
        guard(tmp_path, workloads={"mano": {"data": str(file.parent)}}).admit_experiment(values)


def test_an_agent_without_a_policy_finds_code_in_its_folder(file: Path, tmp_path: Path) -> None:
    code = CodeName.of(file, "build")
    values = {"workload": {"name": "mano", "classifier": str(code)}}
    own = located(values, NodeCode([str(file.parent)], file.parent, stored_too=True))
    copy, _, function = own["workload"]["classifier"].rpartition(":")
    assert function == "build" and Path(copy).read_bytes() == b"X = 1\n"
    again = located(values, NodeCode([str(tmp_path)], tmp_path, stored_too=True))
    assert again == own, "it is in the user's store by now"
    other = {"workload": {"name": "mano", "classifier": f"mine.py#sha256={'0' * 64}:build"}}
    with pytest.raises(PolicyRefused, match="classifier"):
        located(other, NodeCode([str(tmp_path)], tmp_path, stored_too=True))
