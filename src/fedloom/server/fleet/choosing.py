"""Which waiting group is pushed next, and to which node."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fedloom.server.fleet.open_exchange import OpenExchange

MAX_ASSIGNED = 3
"""Limit of groups assigned to an agent before its first result."""


def choose(
    opened: OpenExchange, assigned: Mapping[str, int], willing: Collection[str], eager: Collection[str]
) -> tuple[int, str] | None:
    """Choose the next group to push and its node; None while no node has capacity.

    One running and one waiting group hide the round trip to the server. Agents get more only when they are down to one,
    so that groups, and their results, travel together. Near the end no group waits at a busy agent while another one is
    idle. A group whose node has died goes alone to an idle one: if it was the cause, no other group is lost with it.

    Args:
        opened: whose groups.
        assigned: number of groups assigned to each agent.
        willing: agents that may get any of them.
        eager: agents that had at most one group before these assignments.
    """
    most = MAX_ASSIGNED if len(opened.pending) > len(willing) else 1
    for index in opened.pending:
        prefer, only = opened.groups[index].prefer, opened.only(index)
        names = [only] if only else [prefer] if prefer in willing else willing
        died = index in opened.deaths
        room = 1 if died else most
        free = [(assigned[name], name) for name in names if name in willing and name in eager and assigned[name] < room]
        if free:
            return index, min(free)[1]
        if not opened.has_affinity and not died:
            return None
    return None
