"""What kind of node the groups of an exchange lack while they wait, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedloom.server.fleet.nodes import Node
from fedloom.server.fleet.open_exchange import OpenExchange

_SHOWN = 5
"""Names that a message lists at most."""


def lacking(opened: OpenExchange, nodes: Mapping[str, Node], now: float) -> str:
    """Return what kind of node an exchange's waiting groups lack; empty if they lack none, or none waits.

    Args:
        opened: the exchange.
        nodes: every known node by name.
        now: the clock's time; seconds.
    """
    if not opened.pending:
        return ""
    online = {name: node for name, node in nodes.items() if node.online}
    if not online:
        return "no node is connected"
    fitting = [name for name, node in online.items() if opened.fits(node.labels)]
    if not fitting:
        return f"no node with {opened.labels_text()} is connected (connected: {_some(sorted(online))})"
    willing = [name for name in fitting if opened.wants(name, online[name].labels, now)]
    if not willing:
        reasons = (f"{name}: {opened.refusals[name].reason}" for name in fitting if name in opened.refusals)
        return f"every node refuses the work for now ({_some(list(reasons))})"
    missing = sorted({only for index in opened.pending if (only := opened.only(index)) and only not in willing})
    if missing and all(opened.only(index) for index in opened.pending):
        return f"the selected clients are on {_some(missing)}, not connected"
    if all(online[name].cancelled for name in willing):
        waits = (f"{name} for {now - min(online[name].cancelled.values()):.0f} s" for name in willing)
        return f"every node is still busy with cancelled work ({_some(list(waits))})"
    return ""


def _some(names: Sequence[str]) -> str:
    """List names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
