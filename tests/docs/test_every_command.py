"""Every command and block of the README and the pages, typed in order: each does what its page shows.

`make docs-test` runs these. The comments above blocks are those of `test_examples`; here `parse` means: in a process of
its own, with shorter runs. In prose and in the texts of `--help`, commands are parsed.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import typer.main
from fedloom_docs_pages import ROOT, blocks
from page_reader import Failed, PageReader, check_files, check_output, shortened

from fedloom.cli.app import app

_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_TYPED = [page for page in _PAGES if blocks(page) and page.parent.name != "reference"]
_COMMANDS = typer.main.get_command(app)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.timeout(560)
@pytest.mark.parametrize("page", _TYPED, ids=_name)
def test_a_reader_who_types_all_of_it_gets_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(ROOT / "examples", folder / "examples")
    reader = PageReader(folder)
    try:
        for block in blocks(page):
            try:
                reader.read(block, (block.mark or ("parse" if block.language in ("", "bash") else "show")).split())
            except Exception as exc:
                raise AssertionError(f"{block.page}, block at line {block.line}: {type(exc).__name__}: {exc}") from exc
    finally:
        reader.close()


@pytest.mark.parametrize("page", _PAGES, ids=_name)
def test_commands_in_prose_exist(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for text in re.findall(r"`(fedloom [^`]+)`", prose):
        _check_command(text, _name(page))


def test_commands_in_help_texts_exist() -> None:
    assert isinstance(_COMMANDS, click.Group)
    for command in _all_commands(_COMMANDS):
        texts = [command.help or "", command.epilog or ""]
        texts += [each.help or "" for each in command.params if isinstance(each, click.Option)]
        for text in re.findall(r"`(fedloom [^`]+)`", " ".join(texts)):
            _check_command(text, f"{command.name} --help")


def _all_commands(group: click.Group) -> list[click.Command]:
    found: list[click.Command] = []
    for command in group.commands.values():
        found += _all_commands(command) if isinstance(command, click.Group) else [command]
    return found


def _check_command(text: str, where: str) -> None:
    """Check that the words of a command name commands, and that its options are theirs."""
    words = [word.strip(".,;") for word in shlex.split(text.replace("…", ""))][1:]
    command: click.Command = _COMMANDS
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name.isupper():  # a placeholder
            return
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"{where}: `{text}`: there is no command {name!r}"
        command = found
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option in known, f"{where}: `{text}`: {command.name} has no option {option}"


class TestOracle:
    """A page that shows something else is noticed."""

    def test_other_output(self) -> None:
        check_output("rounds   3\nround 1/3  loss 0.5", "start\n  rounds 12\nround 1/12  loss 0.25  1.5 s\n")
        with pytest.raises(Failed, match="which was not printed"):
            check_output("rounds   3\nclients  20", "  rounds 12\n")
        with pytest.raises(Failed, match="the page shows"):
            check_output("clients  20\nrounds   3", "rounds 3\nclients 20\n")  # another order

    def test_missing_files(self, tmp_path: Path) -> None:
        (tmp_path / "summary.json").touch()
        check_files("runs/<id>/\n  summary.json   the end\n  clients/   sometimes", tmp_path)
        with pytest.raises(Failed, match=r"rounds\.jsonl"):
            check_files("runs/<id>/\n  rounds.jsonl   one line per round", tmp_path)

    def test_a_command_that_fails(self, tmp_path: Path) -> None:
        (tmp_path / "work").mkdir()
        with pytest.raises(Failed, match="ended with 3"):
            PageReader(tmp_path / "work")._type(["bash", "-c", "exit 3"], "here")

    @pytest.mark.parametrize("text", ["fedloom lst presets", "fedloom run --workes 3", "fedloom node lists"])
    def test_commands_that_are_none(self, text: str) -> None:
        with pytest.raises(AssertionError):
            _check_command(text, "a page")

    @pytest.mark.parametrize(
        ("line", "typed"),
        [
            ("fedloom run mine.toml --set rounds=5000", "fedloom run mine.toml --set rounds=5000 --set rounds=3"),
            ("python -m benchmarks.fuzz --count 2000", "python -m benchmarks.fuzz --count 100"),
            ("fedloom list presets", "fedloom list presets"),
        ],
    )
    def test_what_is_shortened(self, line: str, typed: str) -> None:
        assert shortened(line) == typed
