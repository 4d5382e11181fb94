"""Makes the Flower object a `Config` names: class by name, options as keywords, wrappers around it."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Mapping

from fedloom.core.errors import ConfigError, UnknownName, UnsupportedFeature
from fedloom.core.records import Info
from fedloom.core.text import did_you_mean
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower.config import Config, WrapperSettings

_log = logging.getLogger(__name__)

WRAPPERS: Mapping[str, str] = {
    "server_fixed_clipping": "DifferentialPrivacyServerSideFixedClipping",
    "server_adaptive_clipping": "DifferentialPrivacyServerSideAdaptiveClipping",
    "client_fixed_clipping": "DifferentialPrivacyClientSideFixedClipping",
    "client_adaptive_clipping": "DifferentialPrivacyClientSideAdaptiveClipping",
}
_CLIENT_SIDE = frozenset(
    {"DifferentialPrivacyClientSideFixedClipping", "DifferentialPrivacyClientSideAdaptiveClipping"}
)
_WHOLE_COHORT: Mapping[str, float] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}
"""The object samples nothing: clients are chosen by the run's cohort and selection."""


def build_object(config: Config, *, cohort_size: int, hosts_app: bool) -> flwr.Strategy:
    """Return the Flower strategy, wrapped.

    Args:
        config: the strategy's settings.
        cohort_size: clients per round; a wrapper's default for `num_sampled_clients`.
        hosts_app: whether the clients run a Flower app, which can have mods.

    Raises:
        UnknownName: no such class.
        ConfigError: an option the constructor does not take, or one that is the run's.
        UnsupportedFeature: the class cannot be hosted; the message says why.
    """
    kind = find_class(config.class_)
    if kind.__name__.startswith("FedXgb"):
        raise UnsupportedFeature(
            f"strategy.class = {config.class_!r}: XGBoost strategies send serialised trees of growing size instead "
            "of a model's arrays. Run the Flower app that uses it (`fedloom run path/to/app`) instead"
        )
    owned = sorted(config.options.keys() & _WHOLE_COHORT.keys())
    if owned:
        raise ConfigError(
            f"strategy.options.{owned[0]}: sampling is the run's, not the strategy's: set `cohort` (clients per "
            "round), `selection`, `round.quorum_fraction`, `evaluation.every`"
        )
    accepted = inspect.signature(kind).parameters
    defaults = {key: value for key, value in _WHOLE_COHORT.items() if key in accepted}
    made = _call(kind, "strategy.options", defaults | dict(config.options))
    return _wrapped(made, config.wrapper, cohort_size, hosts_app) if config.wrapper else made


def find_class(name: str) -> type[flwr.Strategy]:
    """Return a strategy class by its short name, or by `module:Class`."""
    named = WRAPPERS.get(name, name)
    if named.isidentifier():
        found = getattr(flwr.strategies, named, None)
        if found is None:
            known = [each for each in dir(flwr.strategies) if each[0].isupper()]
            raise UnknownName(
                f"strategy.class: Flower has no strategy {name!r}; {did_you_mean(named, known)}"
                f"known: {', '.join(sorted(known))}"
            )
    else:
        found = find_object(named, "strategy.class")
    if not (isinstance(found, type) and issubclass(found, flwr.Strategy)):
        raise UnsupportedFeature(
            f"strategy.class = {name!r}: expected a subclass of flwr.serverapp.strategy.Strategy, got {found!r}. "
            "Classes of the older flwr.server.strategy are not hosted"
        )
    return found


def find_object(dotted: str, key: str) -> object:
    """Import `module:attribute`.

    Raises:
        UnknownName: it is not written so, or there is no such module or attribute.
    """
    module_name, colon, attribute = dotted.rpartition(":")
    if not (colon and module_name and attribute):
        raise UnknownName(f"{key}: expected `module:name`, importable here, got {dotted!r}")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise UnknownName(f"{key}: cannot import {dotted!r}: {exc}. Expected `module:name`, importable here") from exc


def _wrapped(made: flwr.Strategy, wrapper: WrapperSettings, cohort_size: int, hosts_app: bool) -> flwr.Strategy:
    kind = find_class(wrapper.name)
    if kind.__name__ in _CLIENT_SIDE and not hosts_app:
        raise UnsupportedFeature(
            f"strategy.wrapper = {wrapper.name!r}: client-side clipping is done by a Flower mod in the client's app, "
            "and this workload is not a Flower app. Use server_fixed_clipping or server_adaptive_clipping, which "
            'clip the same update to the same norm on the server, or workload.name = "flower"'
        )
    _warn(kind.__name__)
    accepted = inspect.signature(kind).parameters
    defaults = {"num_sampled_clients": cohort_size} if "num_sampled_clients" in accepted else {}
    return _call(kind, "strategy.wrapper.options", defaults | dict(wrapper.options), made)


@functools.cache
def _warn(name: str) -> None:
    """Log, once in a process, what a wrapper of Flower's does not do as its name promises."""
    if not name.startswith("DifferentialPrivacy"):
        return
    _log.warning(
        "strategy.wrapper %s: its noise is drawn from the experiment's seed, so that a run can be repeated. Anyone "
        "who knows the seed can subtract it: such a run measures the cost of differential privacy, and is not private",
        name,
    )
    if name == WRAPPERS["server_adaptive_clipping"]:
        _log.warning(
            "strategy.wrapper %s: Flower's own rule for the clipping norm diverges: the norm may leave any bound from "
            "round to round. Watch it, or use server_fixed_clipping",
            name,
        )


def _call(kind: type[flwr.Strategy], key: str, options: Info, *args: flwr.Strategy) -> flwr.Strategy:
    accepted = inspect.signature(kind).parameters
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in accepted.values())
    for name in options:
        if name not in accepted and not open_ended:
            hint = did_you_mean(name, accepted)
            known = ", ".join(each for each in accepted if each not in _WHOLE_COHORT)
            raise ConfigError(f"{key}.{name}: {kind.__name__} has no such option; {hint}known: {known}")
    keywords = {
        name: find_object(value, f"{key}.{name}")
        if isinstance(value, str) and name.endswith(("_fn", "_rule"))
        else value
        for name, value in options.items()
    }
    try:
        with flwr.quiet():
            return kind(*args, **keywords)
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"{key}: {kind.__name__} refuses {dict(options)}: {exc}") from exc
