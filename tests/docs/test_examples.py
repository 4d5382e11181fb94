"""The commands and code of the documentation do what the pages say.

A comment above a fenced block says what becomes of it:

    <!-- try: run -->         a command line, or a Python program: run here, and it must succeed
    <!-- try: save NAME -->   written to a file of that name; an experiment must be valid
    <!-- try: parse -->       needs a cluster, a server or minutes: options and settings are checked, nothing is started
    <!-- try: output -->      a sample of what the block before prints
    <!-- try: files -->       files of a run's folder
    <!-- try: show -->        a fragment

A page's blocks are tried in order, in one folder. Where no comment stands, commands are parsed. `parse on NAME` means
another machine or person. Commands that are parsed here, and samples, are tried in earnest by `test_every_command`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest
import typer.main
from fedloom_docs_pages import ROOT, Block, blocks, pages

from fedloom import api
from fedloom.cli.app import app, main
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError

_PAGES = [page for page in pages() if blocks(page)]
_MARKED = [
    *(ROOT / "docs" / kind for kind in ("tutorial", "explanation")),
    *(
        ROOT / "docs" / "how-to" / f"{name}.md"
        for name in (
            "add-a-selection",
            "add-a-strategy",
            "bring-a-flower-app",
            "bring-your-data",
            "debug-a-client",
            "run-from-python",
            "serve-and-enroll-agents",
            "train-your-own-model",
            "use-a-ray-cluster",
            "use-the-final-model",
            "watch-with-prometheus",
        )
    ),
    ROOT / "README.md",
]
"""Pages whose every block says what becomes of it."""
_COMMANDS = typer.main.get_command(app)
_VERBS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def _shortened(page: Path) -> str:
    return str(page.relative_to(ROOT))


_LONG = ("add-noise", "bytes-and-time", "run-a-study", "run-from-a-notebook", "test-a-plug-in", "train-your-own-model")
"""Pages whose commands take more than three seconds."""
_TYPED = [pytest.param(page, marks=[pytest.mark.slow] if page.stem in _LONG else []) for page in _PAGES]


@pytest.mark.parametrize("page", _TYPED, ids=map(_shortened, _PAGES))
def test_page(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page):
        with _placed(block):
            _try(block)
    capsys.readouterr()


@pytest.mark.parametrize("page", _PAGES, ids=_shortened)
def test_every_block_says_what_becomes_of_it(page: Path) -> None:
    if any(page == marked or marked in page.parents for marked in _MARKED):
        unmarked = [block.line for block in blocks(page) if block.mark is None]
        assert not unmarked, f"{_shortened(page)}: blocks at lines {unmarked} have no <!-- try: ... --> above them"


@contextlib.contextmanager
def _placed(block: Block) -> Iterator[None]:
    """Failures name the page and line."""
    try:
        yield
    except (Exception, SystemExit) as exc:
        raise AssertionError(f"{block.page}, block at line {block.line}: {type(exc).__name__}: {exc}") from exc


def _try(block: Block) -> None:
    match (block.mark or "").split():
        case ["run", *_] if block.language == "python":
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {"__name__": "__main__"})
        case ["run", *_]:
            for words in _lines(block):
                _run(words)
        case ["save", name]:
            Path(name).write_text(block.text, encoding="utf-8")
            if block.language == "toml":
                Experiment.load(name)
        case ["show" | "output" | "files"]:
            return
        case _ if block.language == "toml":
            tomllib.loads(block.text)
        case _ if block.language in ("bash", "") and not re.search(r"\bfedloom \w+ \[OPTIONS\]", block.text):
            for words in _lines(block):
                _parse(words)
        case _:
            return


def _lines(block: Block) -> list[list[str]]:
    """The block's command lines as words, comments left out. `<id>` and the like are left as they are."""
    joined = block.text.replace("\\\n", " ")
    rows = (line for line in joined.splitlines() if re.match(r"(fedloom|make|python|chmod|\.) ", line))
    return [words for line in rows if (words := shlex.split(line, comments=True))]


def _run(words: Sequence[str]) -> None:
    """Run one command line; without a runtime of its own an experiment runs inline."""
    out = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if ">" in words else words
    if words[0] != "fedloom":
        command = [sys.executable, *words[1:]] if words[0] == "python" else list(words)
        said = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=60).stdout
        if out:
            Path(out).write_text(said, encoding="utf-8")
        return
    given = [*words[1:]]
    if given[0] in ("run", "resume") and "--runtime" not in given:
        given += ["--runtime", "inline"]
    with contextlib.ExitStack() as stack:
        if out:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(out).open("w", encoding="utf-8"))))
        code = main(given)
    assert code == 0, f"{shlex.join(words)} ended with {code}"


def _parse(words: Sequence[str]) -> None:
    """Check a command line's options, and an experiment's settings, without running anything."""
    if words[0] == "make":
        assert set(words[1:]) <= _VERBS, f"no such verb: {words[1:]}"
    if words[0] != "fedloom":
        return
    given = [word for word in _before_shell(words[1:]) if word != "--debug"]
    assert isinstance(_COMMANDS, click.Group)
    _, command, _ = _COMMANDS.resolve_command(click.Context(_COMMANDS), given)
    assert command is not None
    for file in _values(given, "--token-file"):
        Path(file).write_text("token\n", encoding="utf-8")
    command.make_context(given[0], given[1:])
    if given[0] in ("run", "submit"):
        target = given[1]
        if target in api.presets() or Path(target).exists():
            api.load(target, _values(given, "--set"))


def _before_shell(words: Sequence[str]) -> list[str]:
    """The words up to a redirection or a pipe."""
    return list(
        words[: next((at for at, word in enumerate(words) if word in (">", "|", "&") or word[0] == "<"), len(words))]
    )


def _values(words: Sequence[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


@pytest.mark.parametrize(
    "line",
    [
        "fedloom run digits-fedavg --workes 2",
        "fedloom walk digits-fedavg",
        "fedloom run digits-fedavg --set rouns=2",
        "make dmeo",
    ],
)
def test_a_wrong_line_is_noticed(line: str) -> None:
    with pytest.raises((AssertionError, KeyError, click.UsageError, ConfigError)):
        _parse(shlex.split(line))


def test_a_wrong_program_is_noticed() -> None:
    block = Block("page", 1, "python", "1 / 0", "run")
    with pytest.raises(AssertionError, match="ZeroDivisionError"), _placed(block):
        _try(block)
