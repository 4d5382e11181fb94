"""Environment variables of the command line, for `cli.md`."""

from __future__ import annotations

from fedloom.cli.reference.markdown import code, table

VARIABLES = {
    "FEDLOOM_CACHE": "Folder of prepared data, checkpoints of models and unpacked apps; by default `~/.cache/fedloom`, "
    "or below `XDG_CACHE_HOME`.",
    "FEDLOOM_DEBUG": "`1` adds the traceback to an error, as `--debug` does.",
    "FEDLOOM_IDENTITY": "Folder of the identity, as `--identity`.",
    "FEDLOOM_SERVER": "Address of a server started with `--insecure`, as `--server`.",
    "FEDLOOM_TOKEN_FILE": "Token file of such a server, as `--token-file`.",
    "RAY_ADDRESS": "A running Ray cluster, which is joined where `--ray-address` names no other.",
    "RAY_TMPDIR": "Folder of the files of a Ray that is started on this machine; by default `TMPDIR`, else `/tmp`.",
    "TMPDIR": "Folder of temporary files; by default `/tmp`.",
}
"""What each does."""


def render() -> str:
    """Return the table."""
    return table(("variable", "meaning"), [(code(name), meaning) for name, meaning in VARIABLES.items()])
