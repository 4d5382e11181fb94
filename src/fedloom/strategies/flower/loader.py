"""The folder of a Flower app, with `[tool.flwr.app]` in its pyproject.toml; or a program with `run_simulation`."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

from fedloom.core.config import Experiment, with_overrides
from fedloom.core.errors import ConfigError
from fedloom.core.records import Info
from fedloom.core.text import did_you_mean, dotted
from fedloom.strategies.flower import script
from fedloom.strategies.flower.apps import MANIFEST, Manifest, prepare, read_manifest, unmet_dependencies
from fedloom.strategies.flower.bundle import SUFFIX, unpacked

_log = logging.getLogger(__name__)

_ROUNDS_KEYS = ("num-server-rounds", "num_server_rounds", "num-rounds", "num_rounds")
"""Keys of an app's number of rounds, the one of Flower's template first."""
_CLIENTS = 10
"""Default number of clients."""
_FOR_BOTH = "run_config"


def describes(path: Path) -> bool:
    """Return whether a folder may be a Flower app's, or a file its `pyproject.toml`, its `.fab`, or a program."""
    if path.is_file():
        return path.name == MANIFEST or path.suffix in (SUFFIX, script.SUFFIX)
    return (path / MANIFEST).is_file()


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Make the experiment that a Flower app describes.

    Args:
        path: a folder that contains the app's `pyproject.toml` with `[tool.flwr.app]`, that file, or a `.fab`; or a
            Python program that calls `flwr.simulation.run_simulation`, which is executed up to that call.
        overrides: `KEY=VALUE` settings. Besides those of any experiment (`clients`, `rounds`, `seed`,
            `strategy.resume`, …), `run_config.KEY` changes the app's own configuration and `node_config.KEY` adds to
            every node's. `rounds` sets the app's own number of rounds, if its configuration has one; if not, it is a
            limit, and a run that meets it before the app has finished fails. Without it, the run ends when `main`
            returns.

    Returns:
        An experiment of strategy `flower_app` and workload `flower`. Nothing of a folder's app is imported yet.

    Raises:
        ConfigError: not a Flower app, or an override that does not fit; names what is missing.
    """
    if path.suffix == script.SUFFIX and path.is_file():
        path = path.resolve()
        manifest, path = _program(path), path.parent
    else:
        path = unpacked(path) if path.suffix == SUFFIX else (path.parent if path.name == MANIFEST else path).resolve()
        manifest = read_manifest(path)
    if unmet := unmet_dependencies(manifest):
        _log.warning("the app asks for packages in versions that are not here: %s", "; ".join(unmet))
    own, rest = _apart(overrides)
    own_values = with_overrides({_FOR_BOTH: dict(manifest.config), "node_config": {}}, own)
    node_config = own_values["node_config"]
    # Apps read dotted keys, and an override of `run_config.model.size` has arrived as a table.
    run_config = dotted(own_values[_FOR_BOTH], keep_empty=False)
    _check_keys(run_config, manifest)
    rounds_key = next((key for key in _ROUNDS_KEYS if key in run_config), None)
    values = with_overrides(
        {
            "name": manifest.name,
            "rounds": "open",
            "clients": manifest.supernodes or _CLIENTS,
            "strategy": {"name": "flower_app"},
            "workload": {"name": "flower"},
            "evaluation": {"every": 0},
        },
        rest,
    )
    if rounds_key and isinstance(values["rounds"], int):
        run_config[rounds_key], values["rounds"] = values["rounds"], "open"
    shared = {"app": str(path), "run_config": run_config}
    drawn: dict[str, object] = {"serverapp": manifest.serverapp, "run_id": secrets.randbits(62) + 1}
    if "quorum_fraction" in values.get("round", {}):
        drawn["errors"] = "failures"
    values["strategy"] = shared | drawn | _table(values, "strategy")
    values["workload"] = (
        shared | {"clientapp": manifest.clientapp, "node_config": node_config} | _table(values, "workload")
    )
    experiment = Experiment.parse(values)
    if not experiment.of_sites:
        stated = manifest.supernodes or _sets_clients(rest)
        _log.log(
            logging.INFO if stated else logging.WARNING, "%s", _clients_line(experiment.num_clients, manifest, rest)
        )
    return experiment


def _clients_line(count: int, manifest: Manifest, overrides: Sequence[str]) -> str:
    """Return where the number of clients came from."""
    if _sets_clients(overrides):
        source = "by the setting `clients`"
    elif manifest.supernodes:
        source = "as the app says"
    else:
        source = "by default; the app names no number, change it with --set clients=N"
    return f"{count} clients, {source}"


def _sets_clients(overrides: Sequence[str]) -> bool:
    return any(each.partition("=")[0].strip() == "clients" for each in overrides)


def _program(path: Path) -> Manifest:
    """Execute a program up to its call of `run_simulation`, and return what that was given as an app's manifest."""
    prepare(path.parent)
    call = script.loaded(path, shows=True, anew=True).call
    if call.unused:
        _log.info("%s: %s: not used here; the run's `runtime` settings are", path, ", ".join(call.unused))
    return Manifest(
        name=path.stem,
        serverapp=f"{path.stem}:{script.CALL}.server_app",
        clientapp=f"{path.stem}:{script.CALL}.client_app",
        config={},
        supernodes=call.num_supernodes,
    )


def _check_keys(run_config: Info, manifest: Manifest) -> None:
    """Refuse keys of the app's configuration that the app does not have, as Flower does."""
    for key in run_config:
        if key not in manifest.config:
            raise ConfigError(
                f"{_FOR_BOTH}.{key}: the app has no such key in [tool.flwr.app.config]; "
                f"{did_you_mean(key, manifest.config)}known: {', '.join(sorted(manifest.config)) or 'none'}"
            )


def _apart(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split overrides into the app's own and the experiment's."""
    own = [each for each in overrides if each.partition("=")[0].split(".")[0].strip() in (_FOR_BOTH, "node_config")]
    return own, [each for each in overrides if each not in own]


def _table(values: Info, section: str) -> dict[str, object]:
    table = values[section]
    if not isinstance(table, dict):
        raise ConfigError(f"{section}: a Flower app has its own; use a TOML file to run it with another")
    return table
