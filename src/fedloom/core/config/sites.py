"""Settings of runs whose clients are sites: what `clients` may be, and what has no meaning then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from fedloom.core.config.overrides import with_overrides
from fedloom.core.errors import ConfigError
from fedloom.core.records import Info, JsonObject

Clients: TypeAlias = int | Literal["nodes"] | tuple[str, ...]
"""A number of virtual clients; or the sites: all nodes, or those of these names."""

_INSTEAD = {
    "workload.partition": "each site has data of its own, which is not partitioned",
    "evaluation.on_clients": "each site is evaluated on its own validation data anyway",
    "evaluation.parts": "each site evaluates on its own validation data, in one piece",
    "round.group_size": "each site is a group of its own",
    "fleet.min_nodes": "set round.min_sites, the sites that a round needs",
}
"""Settings without meaning where clients are sites, by dotted key, and why."""


def are_sites(clients: object) -> bool:
    """Return whether a value of `clients` means sites: enrolled nodes that are one client each."""
    return clients == "nodes" or isinstance(clients, list | tuple)


def without_meaning(values: Info) -> JsonObject:
    """Return an experiment's settings without those that have no meaning for sites."""
    found = {key: dict(table) if isinstance(table, Mapping) else table for key, table in values.items()}
    for section, name in _present(values):
        del found[section][name]
    return found


def meaningless(values: Info) -> list[str]:
    """Return the dotted keys of an experiment's settings that have no meaning for sites."""
    return [f"{section}.{name}" for section, name in _present(values)]


def check_meaning(values: Info) -> None:
    """Refuse settings that have no meaning for sites.

    Raises:
        ConfigError: names the first one, its value, and why.
    """
    for section, name in _present(values):
        key = f"{section}.{name}"
        raise ConfigError(
            f"{key}: got {values[section][name]!r}, but clients = {_written(values['clients'])} makes each enrolled "
            f"node a client: {_INSTEAD[key]}. Remove {key}, or set clients to a number"
        )


def check_sites(clients: Clients, least: int | None) -> None:
    """Refuse names of sites, and a number of them that a round needs, that cannot be.

    Raises:
        ConfigError: a name occurs twice, there are fewer names than sites needed, or clients are no sites.
    """
    names = clients if isinstance(clients, tuple) else ()
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"clients: {twice[0]!r} is named twice; name each node once")
    if least is not None and not are_sites(clients):
        raise ConfigError(
            f'round.min_sites: got {least}, but clients = {clients} are virtual clients. Set clients = "nodes", or '
            "remove round.min_sites"
        )
    if least is not None and names and least > len(names):
        raise ConfigError(f"round.min_sites: got {least}, but clients names {len(names)}; set at most {len(names)}")


def check_fine_tuning(clients: Clients, times: int | None) -> None:
    """Refuse evaluation after local training where clients are no sites.

    Raises:
        ConfigError: says so.
    """
    if times is not None and not are_sites(clients):
        raise ConfigError(
            f"evaluation.fine_tune: got {times}, but clients = {clients} are virtual clients, which have no validation "
            'data of their own. Set clients = "nodes", or remove evaluation.fine_tune'
        )


def check_excluded(clients: Clients, excluded: Sequence[int | str]) -> None:
    """Refuse excluded clients that a federation cannot have, and the exclusion of all.

    Raises:
        ConfigError: names the first one that is no client.
    """
    if are_sites(clients):
        names: tuple[int | str, ...] = clients if isinstance(clients, tuple) else ()
        for each in excluded:
            if isinstance(each, int) or each in names:
                raise ConfigError(
                    f"excluded: got {each!r} with clients = {_written(clients)}. Where clients are sites, exclude "
                    "nodes by name, and do not name them in clients"
                )
        return
    number = clients if isinstance(clients, int) else 0
    strange = [each for each in excluded if not isinstance(each, int) or not 0 <= each < number]
    if strange:
        raise ConfigError(f"excluded: expected numbers of clients from 0 to {number - 1}, got {strange[0]!r}")
    if number == len(set(excluded)):
        raise ConfigError(f"excluded: all {clients} clients are excluded; leave at least one")


def make_sites(values: Info, overrides: Sequence[str]) -> bool:
    """Return whether overrides make the clients of an experiment sites, which they were not."""
    if are_sites(values.get("clients")):
        return False
    with contextlib.suppress(ConfigError):
        return are_sites(with_overrides(values, overrides).get("clients"))
    return False


def _present(values: Info) -> Iterator[tuple[str, str]]:
    for key in _INSTEAD:
        section, _, name = key.partition(".")
        table = values.get(section)
        if isinstance(table, Mapping) and name in table:
            yield section, name


def _written(clients: object) -> str:
    return f'"{clients}"' if isinstance(clients, str) else str(list(clients) if isinstance(clients, tuple) else clients)
