"""`errors.md`: the error catalogue."""

from __future__ import annotations

from fedloom.cli.reference.markdown import code, document, prose, table
from fedloom.core.errors import FedloomError, catalogue


def render() -> str:
    """Return the whole page."""
    rows = [
        ("&nbsp;" * 4 * _depth(kind) + code(kind.__name__), str(kind.exit_code), code(kind.status), prose(kind.__doc__))
        for kind in catalogue()
    ]
    return document(
        "Errors",
        "All errors fedloom raises on purpose are in `fedloom.core.errors`. An error is a subclass of the less "
        "indented one above it. The exit code is the command line's, the status is the server's gRPC status.",
        table(("error", "exit code", "status", "when"), rows),
    )


def _depth(kind: type[FedloomError]) -> int:
    return kind.__mro__.index(FedloomError)
