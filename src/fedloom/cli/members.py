"""Commands for members of a server: join it, create and revoke tokens, inspect, label and revoke members."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.identities import IdentityFolder, admin_client
from fedloom.cli.member_text import read_labels, time_text
from fedloom.cli.terminal import Verb, output, print_line, print_table
from fedloom.core.errors import UsageError

if TYPE_CHECKING:
    from fedloom.client.admin import MemberRow

Name = Annotated[str, typer.Argument(metavar="NAME", help="A member's name.", show_default=False)]

node = typer.Typer(help="Inspect, label and revoke members.", no_args_is_help=True)


@node.command("list", cls=Verb)
def list_members(identity: IdentityFolder = None) -> None:
    """List all members."""
    with admin_client(identity) as admin:
        rows = [(each.name, each.role, _standing(each), _labels_text(each)) for each in admin.members()]
    print_table(output(), ("name", "role", "standing", "labels"), rows)


@node.command("show", cls=Verb)
def show_member(name: Name, identity: IdentityFolder = None) -> None:
    """Show one member."""
    with admin_client(identity) as admin:
        found = [each for each in admin.members() if each.name == name]
    if not found:
        raise UsageError(f"no member {name!r}; see `fedloom node list`")
    (member,) = found
    rows = [
        ("name", member.name),
        ("role", member.role),
        ("standing", _standing(member)),
        ("labels", _labels_text(member)),
        ("joined", time_text(member.enrolled_at)),
        ("by token", member.token or "none"),
        ("certificate until", time_text(member.expires_at)),
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
    with admin_client(identity) as admin:
        ended = admin.revoke(name, keep_token=keep_token)
    print_line(f"{name} was revoked" + "".join(f", and token {each} was revoked" for each in ended))


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
    add = read_labels([each for each in labels if not (each.endswith("-") and "=" not in each)])
    with admin_client(identity) as admin:
        now = admin.label(name, add, remove)
    print_line(f"{name}: " + (", ".join(f"{key}={value}" for key, value in sorted(now.items())) or "no labels"))


def _labels_text(member: MemberRow) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(member.labels.items()))


def _standing(member: MemberRow) -> str:
    if member.revoked_at:
        return f"revoked {time_text(member.revoked_at)}"
    if member.expires_at < datetime.now(UTC).timestamp():
        return f"expired {time_text(member.expires_at)}"
    return "good"
