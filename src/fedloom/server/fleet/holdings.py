"""Which node has which group of an exchange, and which groups wait for a node that is gone."""

from __future__ import annotations

from collections.abc import Mapping

from fedloom.server.fleet.nodes import Node
from fedloom.server.fleet.open_exchange import Holding, OpenExchange


def holders(opened: OpenExchange, nodes: Mapping[str, Node]) -> dict[int, str]:
    """Return which node has which group of an exchange now."""
    keys = {opened.key(index): index for index in range(len(opened.groups))}
    return {keys[key]: name for name, node in nodes.items() for key in node.assigned if key in keys}


def holdings(opened: OpenExchange, nodes: Mapping[str, Node]) -> dict[int, Holding]:
    """Return which node has had which group of an exchange the longest, and since when."""
    keys = {opened.key(index): index for index in range(len(opened.groups)) if index not in opened.done}
    found = dict[int, Holding]()
    for name, node in nodes.items():
        for key, since in node.assigned.items():
            index = keys.get(key)
            if index is not None and (index not in found or since < found[index].since):
                found[index] = Holding(node=name, since=since)
    return found


def absent(opened: OpenExchange, nodes: Mapping[str, Node], now: float, grace_s: float) -> dict[int, str]:
    """Return waiting groups that only one node may do which is gone, with its name.

    Args:
        opened: the exchange.
        nodes: every known node by name.
        now: the clock's time (monotonic seconds).
        grace_s: seconds a disconnected node may take to reconnect.
    """
    if opened.reassigns:
        return {}
    waiting = {index: only for index in opened.pending if (only := opened.groups[index].only)}
    return {
        index: only
        for index, only in waiting.items()
        if only not in nodes or not (nodes[only].online or nodes[only].is_present(now, grace_s))
    }
