"""The command by which a machine joins a server, and the policy it writes."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.identities import NodeConfig, Proxy
from fedloom.cli.terminal import print_line, print_warning
from fedloom.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from fedloom.core.identity import Identity


def join(
    join_token: Annotated[
        str,
        typer.Argument(
            metavar="-",
            help="- reads the token from stdin, as printed by `fedloom token create`. The token itself also works, but "
            "other users of the machine can read a command line.",
            show_default=False,
        ),
    ],
    identity: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the identity; by default ~/.config/fedloom/node (or user)."),
    ] = None,
    allow: Annotated[
        list[str],
        typer.Option(
            metavar="WORKLOAD[=DIR]",
            help="A workload this node allows, and its folder $DATA; written to its policy. Repeatable.",
        ),
    ] = [],  # noqa: B006  # typer reads the default, nobody changes it
    column: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Another column of this node's tables that may be read, besides those its workloads read by default; "
            "written to its policy. Repeatable.",
        ),
    ] = [],  # noqa: B006  # typer reads the default, nobody changes it
    node_config: NodeConfig = [],  # noqa: B006  # typer reads the default, nobody changes it
    proxy: Proxy = "",
) -> None:
    """Enrol this machine: verify the server, create a key, obtain a certificate."""
    from fedloom.client import enroll, node_values
    from fedloom.core.identity import default_folder

    secret = sys.stdin.read().strip() if join_token == "-" else join_token
    policy, values = _policy_text(allow, column), node_values.parse(node_config)
    if join_token != "-":
        print_warning("the token was on the command line, where other users can read it: fedloom join - <TOKEN-FILE")
    joined = enroll.join(secret, identity, proxy)
    if values:
        print_line(f"its own values for hosted apps are in {node_values.write(joined.folder, values)}")
    if joined.role == "node":
        _begin_node(joined, policy, allows_work=bool(allow))
        return
    print_line(f"joined {joined.address} as {joined.role} {joined.name}; the identity is in {joined.folder}")
    if joined.folder != default_folder("user"):
        typer.echo(f"use it with: fedloom runs{_with_identity(joined.folder, default_folder('user'))}")


def _begin_node(joined: Identity, policy: str, *, allows_work: bool) -> None:
    """Write a new node's policy, unless it has one and no workload was named, and print the rules in force."""
    from fedloom.client.policy import Policy
    from fedloom.client.rules_text import rules_in_force
    from fedloom.core import files
    from fedloom.core.identity import default_folder

    file = joined.folder / "policy.toml"
    if allows_work or not file.exists():
        files.write(file, policy, private=True)
    print_line(f"joined {joined.address} as node {joined.name}; its policy is {file}")
    with contextlib.suppress(ConfigError):  # said when the node is started
        for rule in rules_in_force(Policy.load(file)):
            typer.echo(f"  {rule}")
    if not allows_work:
        typer.echo("it refuses all work until that file allows a workload")
    typer.echo(f"start it with: fedloom client{_with_identity(joined.folder, default_folder('node'))}")


def _with_identity(folder: Path, usual: Path) -> str:
    """Return the option that names an identity's folder, if it is needed."""
    return "" if folder == usual else f" --identity {shlex.quote(str(folder))}"


def _policy_text(allow: list[str], columns: list[str]) -> str:
    from fedloom.core.setting_types import DATA

    lines = [
        "# What this node allows; docs/reference/settings.md of the sources lists every key.",
        "",
    ]
    for each in allow:
        name, _, data = each.partition("=")
        if data and not Path(data).is_dir():
            raise UsageError(f"--allow {each!r}: {data} is not a folder on this machine; the token was not used")
        lines.append(f"[workloads.{_quoted(name)}]")
        lines.append(f"data = {_quoted(str(Path(data).resolve()))}" if data else f'# data = "…"  # what {DATA} means')
        if data and (named := sorted({*_default_columns(name), *columns})):
            lines.append(f"columns = [{', '.join(map(_quoted, named))}]  # the columns that may be read")
        lines.append("")
    if not allow:
        lines += ["# [workloads.image_classification]", ""]
    return "\n".join(lines)


def _default_columns(workload: str) -> frozenset[str]:
    """Return the default columns of a workload; empty if it is not installed here."""
    from fedloom.core.config import plugin_schema
    from fedloom.core.errors import FedloomError
    from fedloom.core.kinds import Kind
    from fedloom.core.registry import PartRef
    from fedloom.core.setting_types import default_columns

    try:
        is_here = PartRef(Kind.WORKLOAD, workload, "workload").installed
        return default_columns(plugin_schema(Kind.WORKLOAD, workload)) if is_here else frozenset()
    except FedloomError:
        return frozenset()


def _quoted(text: str) -> str:
    if '"' in text or "\\" in text or not text.isprintable() or not text:
        raise UsageError(f"--allow {text!r}: expected WORKLOAD or WORKLOAD=FOLDER, without quotes or backslashes")
    return f'"{text}"'
