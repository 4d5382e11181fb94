"""Commands for members of a server: join it, create and revoke tokens, inspect, label and revoke members."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.terminal import Verb, output, print_table, print_warning
from fedloom.core.errors import ConfigError, ServerUnreachable, Unauthenticated, UsageError

if TYPE_CHECKING:
    from fedloom.client.admin import AdminClient, MemberRow, TokenRow
    from fedloom.core.identity import Identity

IdentityFolder = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="DIR",
        envvar="FEDLOOM_IDENTITY",
        help="Folder of the identity to use: yours from `fedloom join`, or `admin` in a server's state "
        "folder. By default the one in ~/.config/fedloom, otherwise fedloom-server/admin.",
    ),
]
Proxy = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="The HTTP proxy to the server, http://[USER:PASSWORD@]HOST:PORT, or none; by default the one of `join`, "
        "otherwise that of grpc_proxy, https_proxy or http_proxy, but for what no_grpc_proxy or no_proxy lists.",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A member's name.", show_default=False)]
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

token = typer.Typer(help="Create, list and revoke join tokens.", no_args_is_help=True)
node = typer.Typer(help="Inspect, label and revoke members.", no_args_is_help=True)


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
    proxy: Proxy = "",
) -> None:
    """Enrol this machine: verify the server, create a key, obtain a certificate."""
    from fedloom.client import enroll
    from fedloom.client.policy import Policy
    from fedloom.client.rules_text import rules_in_force
    from fedloom.core import files
    from fedloom.core.identity import default_folder

    reported = sys.stdin.read().strip() if join_token == "-" else join_token
    policy = _policy_text(allow, column)
    if join_token != "-":
        print_warning("the token was on the command line, where other users can read it: fedloom join - <TOKEN-FILE")
    joined = enroll.join(reported, identity, proxy)
    if joined.role == "node":
        file = joined.folder / "policy.toml"
        if allow or not file.exists():
            files.write(file, policy, private=True)
        typer.echo(f"joined {joined.address} as node {joined.name}; its policy is {file}")
        with contextlib.suppress(ConfigError):  # said when the node is started
            for rule in rules_in_force(Policy.load(file)):
                typer.echo(f"  {rule}")
        if not allow:
            typer.echo("it refuses all work until that file allows a workload")
        typer.echo(f"start it with: fedloom client{_with_identity(joined.folder, default_folder('node'))}")
    else:
        typer.echo(f"joined {joined.address} as {joined.role} {joined.name}; the identity is in {joined.folder}")
        if joined.folder != default_folder("user"):
            typer.echo(f"use it with: fedloom runs{_with_identity(joined.folder, default_folder('user'))}")


@token.command("create", cls=Verb)
def create_token(
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The member's name; with several uses, NAME-1, NAME-2, …", show_default=False
        ),
    ],
    ttl: Annotated[str, typer.Option(metavar="TIME", help="How long it is valid: 90s, 30m, 1h, 7d.")] = "1h",
    uses: Annotated[int, typer.Option(min=1, metavar="N", help="How many members may join with it.")] = 1,
    role: Annotated[str, typer.Option(metavar="ROLE", help="node, user or admin.")] = "node",
    label: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="A label of the member; repeatable.")] = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it to a file readable only by you, instead of printing it."),
    ] = None,
    identity: IdentityFolder = None,
) -> None:
    """Make a join token: the server's address, the digest of its authority, and a secret."""
    from fedloom.core import files

    with _admin(identity) as admin:
        made = admin.create_token(name, role=role, ttl_s=_seconds(ttl), uses=uses, labels=_labels(label))
    if out is None:
        typer.echo(made.encode())
        return
    files.write(out, made.encode() + "\n", private=True)
    typer.echo(f"the token is in {out}; join with: fedloom join - <{shlex.quote(str(out))}")


@token.command("list", cls=Verb)
def list_tokens(identity: IdentityFolder = None) -> None:
    """List join tokens: name and role, uses, and the members they admitted."""
    with _admin(identity) as admin:
        rows = [
            (
                each.id,
                each.name,
                each.role,
                f"{each.used} of {each.uses}",
                _token_standing(each),
                each.maker,
                ", ".join(each.admitted),
            )
            for each in admin.tokens()
        ]
    print_table(output(), ("token", "name", "role", "used", "standing", "made by", "admitted"), rows)


@token.command("revoke", cls=Verb)
def revoke_token(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="A token's id; see `fedloom token list`.", show_default=False)
    ],
    members: Annotated[bool, typer.Option("--members", help="Also revoke the members it admitted.")] = False,
    identity: IdentityFolder = None,
) -> None:
    """Revoke a token. Members it has admitted remain, unless --members is given."""
    with _admin(identity) as admin:
        known = {each.id: each for each in admin.tokens()}
        standing = {each.name for each in admin.members() if not each.revoked_at}
        found = known.get(token_id)
        admitted = [name for name in found.admitted if name in standing] if found is not None else []
        if not (members and admitted and found is not None and _is_over(found)):  # nothing but its members is left
            admin.revoke_token(token_id)
        typer.echo(f"token {token_id} was revoked")
        for name in admitted if members else ():
            admin.revoke(name)
            typer.echo(f"{name} was revoked")
    if admitted and not members:
        typer.echo(f"it admitted {', '.join(admitted)}, who remain members; --members revokes them, too")


@node.command("list", cls=Verb)
def list_members(identity: IdentityFolder = None) -> None:
    """List all members."""
    with _admin(identity) as admin:
        rows = [(each.name, each.role, _standing(each), _labels_text(each)) for each in admin.members()]
    print_table(output(), ("name", "role", "standing", "labels"), rows)


@node.command("show", cls=Verb)
def show_member(name: Name, identity: IdentityFolder = None) -> None:
    """Show one member."""
    with _admin(identity) as admin:
        found = [each for each in admin.members() if each.name == name]
    if not found:
        raise UsageError(f"no member {name!r}; see `fedloom node list`")
    (member,) = found
    rows = [
        ("name", member.name),
        ("role", member.role),
        ("standing", _standing(member)),
        ("labels", _labels_text(member)),
        ("joined", _time(member.enrolled_at)),
        ("by token", member.token or "none"),
        ("certificate until", _time(member.expires_at)),
        ("certificate SHA-256", member.fingerprint),
    ]
    print_table(output(), ("", ""), rows)


@node.command("revoke", cls=Verb)
def revoke_member(
    name: Name,
    keep_token: Annotated[bool, typer.Option("--keep-token", help="Do not revoke the token it joined with.")] = False,
    identity: IdentityFolder = None,
) -> None:
    """Revoke a member immediately: its streams end, its certificates are rejected, its token is revoked."""
    with _admin(identity) as admin:
        ended = admin.revoke(name, keep_token=keep_token)
    typer.echo(f"{name} was revoked" + "".join(f", and token {each} was revoked" for each in ended))


@node.command("label", cls=Verb)
def label_member(
    name: Name,
    labels: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE|KEY-", help="Labels to set, or to remove.", show_default=False)
    ],
    identity: IdentityFolder = None,
) -> None:
    """Set labels (KEY=VALUE) of a member, or remove them (KEY-)."""
    remove = [each[:-1] for each in labels if each.endswith("-") and "=" not in each]
    add = _labels([each for each in labels if not (each.endswith("-") and "=" not in each)])
    with _admin(identity) as admin:
        now = admin.label(name, add, remove)
    typer.echo(f"{name}: " + (", ".join(f"{key}={value}" for key, value in sorted(now.items())) or "no labels"))


def find_identity(folder: Path | None) -> Identity:
    """Return the identity in a folder, or the first default one; its certificate is renewed if that is due."""
    from fedloom.client.enroll import renew, renewal_due_s
    from fedloom.core.identity import Identity, default_folder

    places = [folder] if folder is not None else [default_folder("user"), Path("fedloom-server") / "admin"]
    place = next((each for each in places if (each / "server.json").exists()), places[0])
    identity = Identity.load(place)
    try:
        return renew(identity) if renewal_due_s(identity) <= 0 else identity
    except (ServerUnreachable, Unauthenticated) as exc:
        if ended := identity.ended():
            raise Unauthenticated(f"{exc}. And {ended}") from exc
        raise


def _admin(folder: Path | None) -> AdminClient:
    from fedloom.client.admin import AdminClient

    return AdminClient(find_identity(folder))


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


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise UsageError(f"--ttl {text!r}: expected a number and s, m, h or d, such as 1h")
    return float(match[1]) * _UNITS[match[2]]


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise UsageError(
                f"label {pair!r}: expected KEY=VALUE, such as site=lab (`fedloom node label` removes by KEY-)"
            )
        labels[key] = value
    return labels


def _labels_text(member: MemberRow) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(member.labels.items()))


def _standing(member: MemberRow) -> str:
    if member.revoked_at:
        return f"revoked {_time(member.revoked_at)}"
    if member.expires_at < datetime.now(UTC).timestamp():
        return f"expired {_time(member.expires_at)}"
    return "good"


def _is_over(token_row: TokenRow) -> bool:
    """Return whether a token is unusable."""
    ended = token_row.revoked_at or token_row.expires_at <= datetime.now(UTC).timestamp()
    return bool(ended) or token_row.used >= token_row.uses


def _token_standing(token_row: TokenRow) -> str:
    if token_row.revoked_at:
        return f"revoked {_time(token_row.revoked_at)}"
    if token_row.used >= token_row.uses:
        return "used up"
    if _is_over(token_row):
        return f"expired {_time(token_row.expires_at)}"
    return f"until {_time(token_row.expires_at)}"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC" if seconds else "never"
