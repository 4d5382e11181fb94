"""TOML as editors write it, and settings of the command line that look like something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError

TEXT = 'name = "caf\u00e9"\nrounds = 1\nstrategy = "fedavg"\n[workload]\nname = "fedloom.testing.linear"\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path, encoding: str, newline: str) -> None:
    (tmp_path / "e.toml").write_bytes(TEXT.replace("\n", newline).encode(encoding))
    assert Experiment.load(tmp_path / "e.toml").name == "caf\u00e9"


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\xef\xbb\xbf\xff", b"a = ", b"a = " + b"[" * 3000])
def test_what_is_no_toml_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "e.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"e\.toml: not valid TOML"):
        Experiment.load(tmp_path / "e.toml")


@pytest.mark.parametrize("name", ["2024", "2024.10", "true", "2024-01-02", "1e3", "0x10", "'quoted'", "[a]", "inf"])
def test_text_that_looks_like_something_else_is_text_where_text_is_meant(tmp_path: Path, name: str) -> None:
    (tmp_path / "e.toml").write_text(TEXT, encoding="utf-8")
    found = Experiment.load(tmp_path / "e.toml", [f"name={name}", "rounds=3"])
    assert (found.name, found.rounds) == (name.strip("'"), 3)


def test_a_wrong_value_is_still_named_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(TEXT, encoding="utf-8")
    with pytest.raises(ConfigError, match="rounds"):
        Experiment.load(tmp_path / "e.toml", ["rounds=-1", "name=2024"])
