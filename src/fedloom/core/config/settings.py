"""Base classes of all settings, and the settings class of a plug-in by its name."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping

import pydantic
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from fedloom.core import registry
from fedloom.core.errors import ConfigError
from fedloom.core.kinds import Kind
from fedloom.core.records import Info
from fedloom.core.setting_types import PlainWord

SWITCH = "switch_as_number"
"""Type of pydantic's error for true or false in place of a number."""


class Settings(BaseModel):
    """Base of every group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,  # what may be unbounded is None
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _has_no_switch_as_number(cls, values: object) -> object:
        """Refuse true and false where a number is meant; Python takes them for 1 and 0."""
        given = values.items() if isinstance(values, dict) else ()
        switches = {key: value for key, value in given if value is True or value is False}
        for key, value in switches.items():
            kinds = set(_flat(cls.model_fields[key].annotation)) if key in cls.model_fields else set()
            if kinds & {int, float} and not kinds & {bool, object}:
                text = str(value).lower()
                raise PydanticCustomError(SWITCH, "expected a number, got {text}", {"key": key, "text": text})
        return values


def _flat(annotation: object) -> Iterator[object]:
    """Yield the types that a field takes, unions and annotations apart."""
    if typing.get_origin(annotation) is typing.Annotated:
        yield from _flat(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for each in typing.get_args(annotation):
            yield from _flat(each)
    elif typing.get_origin(annotation) is typing.Literal:
        yield from map(type, typing.get_args(annotation))
    else:
        yield object if annotation is typing.Any else annotation


class PluginSettings(Settings):
    """Base of the `Config` of a strategy, workload or selection folder."""

    name: PlainWord
    """Name of the plug-in: one of fedloom's, an installed entry point, an importable module, or the path
    of a Python file or of a package's folder."""

    @classmethod
    def default_for(cls, kind: Kind) -> str | None:
        """Return the plug-in of a kind that an experiment with this strategy has if it names none.

        The table of kinds decides; a strategy that needs another selection overrides this. Of a kind without a default
        an experiment that names none has none.
        """
        return kind.default

    def wanted_actions(self) -> Mapping[str, Info]:
        """Return the workload's actions that a strategy with these settings uses, each with its settings.

        A workload may check them when it is built, to reject an unsupported one before the run. Empty by default.
        """
        return {}

    def needs_of_clients(self) -> frozenset[str]:
        """Return what a selection with these settings needs to know of clients.

        Some of `sizes`, `label_counts` and `firing_rates`: a node that withholds one refuses the run. Empty by default.
        """
        return frozenset()

    @classmethod
    def measured_facts(cls) -> frozenset[str]:
        """Return what a selection's measure may report of clients, whatever its settings: as for `needs_of_clients`."""
        return frozenset()

    def objects_key(self) -> str:
        """Return the key of the Python objects that the plug-in takes from its program; empty if it takes none.

        Such a plug-in works in that program and the workers it starts, and nowhere else (`core.python_objects`).
        """
        return ""

    def clients_have_state(self) -> bool:
        """Return whether clients of a workload with these settings may send a state to be stored between their jobs.

        False refuses states of nodes, but where a strategy's client half runs, which may have one. True by default.
        """
        return True

    def decides_about_failures(self) -> bool:
        """Return whether missing updates are the strategy's business, as long as the run requires no other quorum."""
        return False

    def rounds_needed_by(self) -> str:
        """Return the setting that makes a client's training depend on the number of rounds; empty if none does.

        A run with such a setting resumes with another number of rounds only as a continuation.
        """
        return ""


def plugin_schema(kind: str, name: str) -> type[PluginSettings]:
    """Return the `Config` of a plug-in.

    Raises:
        UnknownName: nothing by this name is installed here.
        ConfigError: it defines none.
    """
    module = registry.part(kind, name, "config")
    found = vars(module).get("Config")
    if not isinstance(found, type) or not issubclass(found, PluginSettings):
        section = Kind(kind).section
        place = ""
        if isinstance(found, type) and found.__module__ == module.__name__:
            place = f"{module.__file__}, line {inspect.getsourcelines(found)[1]}: "
        raise ConfigError(
            f"{place}{section}.name: {name!r} defines no class Config(fedloom.core.config.PluginSettings)"
        )
    return found
