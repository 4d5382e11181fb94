"""Commands for join tokens: create, list and revoke them."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.identities import IdentityFolder, admin_client
from fedloom.cli.member_text import read_labels, time_text
from fedloom.cli.terminal import Verb, output, print_line, print_table
from fedloom.core.errors import UsageError

if TYPE_CHECKING:
    from fedloom.client.admin import TokenRow

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

token = typer.Typer(help="Create, list and revoke join tokens.", no_args_is_help=True)


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

    with admin_client(identity) as admin:
        made = admin.create_token(name, role=role, ttl_s=_seconds(ttl), uses=uses, labels=read_labels(label))
    if out is None:
        typer.echo(made.encode())
        return
    files.write(out, made.encode() + "\n", private=True)
    typer.echo(f"the token is in {out}; join with: fedloom join - <{shlex.quote(str(out))}")


@token.command("list", cls=Verb)
def list_tokens(identity: IdentityFolder = None) -> None:
    """List join tokens: name and role, uses, and the members they admitted."""
    with admin_client(identity) as admin:
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
    with admin_client(identity) as admin:
        known = {each.id: each for each in admin.tokens()}
        standing = {each.name for each in admin.members() if not each.revoked_at}
        found = known.get(token_id)
        admitted = [name for name in found.admitted if name in standing] if found is not None else []
        if not (members and admitted and found is not None and _is_over(found)):  # nothing but its members is left
            admin.revoke_token(token_id)
        typer.echo(f"token {token_id} was revoked")
        for name in admitted if members else ():
            admin.revoke(name)
            print_line(f"{name} was revoked")
    if admitted and not members:
        print_line(f"it admitted {', '.join(admitted)}, who remain members; --members revokes them, too")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise UsageError(f"--ttl {text!r}: expected a number and s, m, h or d, such as 1h")
    return float(match[1]) * _UNITS[match[2]]


def _is_over(token_row: TokenRow) -> bool:
    """Return whether a token is unusable."""
    ended = token_row.revoked_at or token_row.expires_at <= datetime.now(UTC).timestamp()
    return bool(ended) or token_row.used >= token_row.uses


def _token_standing(token_row: TokenRow) -> str:
    if token_row.revoked_at:
        return f"revoked {time_text(token_row.revoked_at)}"
    if token_row.used >= token_row.uses:
        return "used up"
    if _is_over(token_row):
        return f"expired {time_text(token_row.expires_at)}"
    return f"until {time_text(token_row.expires_at)}"
