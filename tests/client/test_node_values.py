"""A node's own values for hosted apps: how they are written, kept, and given to a workload."""

from pathlib import Path

import pytest

from fedloom.client.facts import facts
from fedloom.client.node_values import inserted, own_values, parse, write
from fedloom.core.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["dataset-path='/data/my site'"], {"dataset-path": "/data/my site"}),
        (["partition-id=0 num-partitions=2"], {"partition-id": 0, "num-partitions": 2}),
        (['a="x=1 y" b=true  c=1.5', "a=later"], {"a": "later", "b": True, "c": 1.5}),
        (["path=/data/x", "url=http://host:1/a=b"], {"path": "/data/x", "url": "http://host:1/a=b"}),
        (["a.b-c=C:\\x", "d=2026-01-01", "e=[1]"], {"a.b-c": "C:\\x", "d": "2026-01-01", "e": "[1]"}),
        (['q="a \\"b\\" é"', "n=-3", "z=''"], {"q": 'a "b" é', "n": -3, "z": ""}),
        ([], {}),
    ],
)
def test_values_are_read_as_flower_writes_them_and_survive_their_file(
    texts: list[str], values: dict[str, object], tmp_path: Path
) -> None:
    found = parse(texts)
    assert found == values and [type(value) for value in found.values()] == [type(each) for each in values.values()]
    write(tmp_path, found)
    assert own_values(tmp_path, {}) == values
    assert own_values(tmp_path, {"n": 7}) == {**values, "n": 7}, "the command line's come over the file's"


@pytest.mark.parametrize("text", ["path", "=1", "a=", "a='x", "a = 1", "a=x y", 'a="x"y', "no/such.toml"])
def test_what_is_no_pair_is_refused_by_value(text: str) -> None:
    with pytest.raises(UsageError, match=r"node-config|node.s values"):
        parse([text])


def test_a_file_of_values_is_flat_and_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("a = 1\n[b]\nc = 2\n", encoding="utf-8")
    file.chmod(0o600)
    with pytest.raises(UsageError, match=r"own\.toml: b: expected a text, a number or a boolean, got {'c': 2}"):
        parse([str(file)])
    file.write_text("a = 1\n", encoding="utf-8")
    assert parse([str(file), "b=2"]) == {"a": 1, "b": 2}
    Path(file).chmod(0o666)
    with pytest.raises(UsageError, match="other users can write"):
        parse([str(file)])


def test_a_nodes_values_come_over_those_of_the_server() -> None:
    sent = {"workload": {"name": "flower", "node_config": {"a": 1, "b": 1}}}
    assert inserted(sent, {"b": 2})["workload"]["node_config"] == {"a": 1, "b": 2}
    assert sent["workload"]["node_config"] == {"a": 1, "b": 1}
    other = {"workload": {"name": "image_classification"}}
    assert inserted(other, {"b": 2}) is other, "a workload that takes none"
    with pytest.raises(ConfigError, match="a list by client is for simulations"):
        inserted({"workload": {"name": "flower", "node_config": [{}]}}, {"b": 2})


def test_names_of_values_are_facts_and_values_are_not() -> None:
    assert facts("x", {"path": "/secret", "id": 1})["node_config"] == "id path"
    assert "node_config" not in facts("x")
