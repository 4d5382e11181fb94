"""Flower, both ways: run a Flower app's folder as an experiment, or use a strategy of ours inside a Flower app."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedloom.core.config import Experiment, with_overrides
from fedloom.core.errors import ConfigError
from fedloom.core.records import Info
from fedloom.core.text import dotted

if TYPE_CHECKING:
    from fedloom.strategies.flower import flwr_api as flwr

_ROUNDS_KEYS = ("num-server-rounds", "num_server_rounds", "num-rounds", "num_rounds")
"""Where apps keep their number of rounds, Flower's template's name first."""
_CLIENTS = 10
"""Clients where neither the app nor the user says how many."""
_ROUNDS = 1000
"""Rounds allowed to an app that keeps its number to itself; its run ends when `main` returns."""
_FOR_BOTH = "run_config"


def load_app(folder: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment a Flower app's folder describes.

    Args:
        folder: holds the app's `pyproject.toml` with `[tool.flwr.app]`.
        overrides: `KEY=VALUE` settings. Beside those of any experiment (`clients`, `rounds`, `seed`,
            `strategy.resume`, …), `run_config.KEY` changes the app's own configuration and `node_config.KEY` adds to
            every node's. `rounds` also sets the app's number of rounds, where its configuration has one.

    Returns:
        An experiment of strategy `flower_app` and workload `flower`. Nothing of the app is imported yet.

    Raises:
        ConfigError: not a Flower app, or an override that does not fit; names what is missing.
    """
    from fedloom.strategies.flower.apps import read_manifest

    path = Path(folder).resolve()
    manifest = read_manifest(path)
    own, rest = _apart(overrides)
    own_values = with_overrides({_FOR_BOTH: dict(manifest.config), "node_config": {}}, own)
    # Apps read dotted keys, and an override of `run_config.model.size` has arrived as a table.
    run_config = dotted(own_values[_FOR_BOTH], keep_empty=False)
    rounds_key = next((key for key in _ROUNDS_KEYS if key in run_config), None)
    rounds = run_config[rounds_key] if rounds_key else _ROUNDS
    values = with_overrides(
        {
            "name": manifest.name,
            "rounds": rounds,
            "clients": manifest.supernodes or _CLIENTS,
            "strategy": {"name": "flower_app"},
            "workload": {"name": "flower"},
            "evaluation": {"every": 0},
        },
        rest,
    )
    if rounds_key and isinstance(values["rounds"], int):
        run_config[rounds_key] = values["rounds"]
    shared = {"app": str(path), "run_config": run_config}
    values["strategy"] = shared | {"serverapp": manifest.serverapp} | _table(values, "strategy")
    values["workload"] = (
        shared
        | {"clientapp": manifest.clientapp, "node_config": own_values["node_config"]}
        | _table(values, "workload")
    )
    return Experiment.parse(values)


def as_strategy(
    name: str,
    *,
    fraction_train: float = 1.0,
    fraction_evaluate: float = 1.0,
    min_nodes: int = 2,
    seed: int = 1,
    weighted_by: str = "num-examples",
    **options: object,
) -> flwr.Strategy:
    """One of our strategies as a Flower `Strategy` object, for use in a Flower app.

    Args:
        name: a strategy of ours, such as `fedavg` or `server_opt`.
        fraction_train: share of the connected nodes asked to train each round.
        fraction_evaluate: share asked to evaluate.
        min_nodes: connected nodes to wait for before a round; also the least number asked.
        seed: root of the strategy's randomness, and of the choice of nodes.
        weighted_by: metric of the replies by which updates are weighted.
        options: settings of the strategy.

    Returns:
        A `flwr.serverapp.strategy.Strategy`; give it to nobody else, it keeps the run's state.

    Raises:
        UnknownName: no such strategy.
        ConfigError: a setting it does not have.
    """
    from fedloom.strategies.flower.export import OursInFlower

    return OursInFlower(
        name,
        options,
        fraction_train=fraction_train,
        fraction_evaluate=fraction_evaluate,
        min_nodes=min_nodes,
        seed=seed,
        weighted_by=weighted_by,
    )


def _apart(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The app's own overrides, and the experiment's."""
    own = [each for each in overrides if each.split(".")[0].strip() in (_FOR_BOTH, "node_config")]
    return own, [each for each in overrides if each not in own]


def _table(values: Info, section: str) -> dict[str, object]:
    table = values[section]
    if not isinstance(table, dict):
        raise ConfigError(f"{section}: a Flower app brings its own; run it with another by a TOML file of your own")
    return table
