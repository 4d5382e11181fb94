"""The experiment: one frozen value, read from TOML, from a dictionary, or built in Python.

Every setting is a documented field here or in the `config.py` of the strategy, workload or selection it names. The
only loader is `Experiment.load`; `--set a.b=c` goes through it too.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny
from pydantic_core import ErrorDetails

from fedloom.core import registry
from fedloom.core.code_files import CodeFile, code_digest, set_text
from fedloom.core.errors import ConfigError
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.records import Info, JsonObject
from fedloom.core.setting_types import SERVER_ONLY, FreeText, PlainWord, SettingKind, server_only_fields, text_settings
from fedloom.core.text import nearest
from fedloom.core.toml_files import read_toml

INCIDENTAL = ("name", "runtime", "checkpoint", "fleet")
"""Sections of an experiment that never change a result."""

NODE_STATE_ROUNDS = 4
"""Rounds of client state a node stores per client, newest first, if `round.state_home` is `node`."""


class Settings(BaseModel):
    """Base of every group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


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

    def rounds_needed_by(self) -> str:
        """Return the setting that makes a client's training depend on the number of rounds; empty if none does.

        A run with such a setting resumes with another number of rounds only as a continuation.
        """
        return ""


class RoundSettings(Settings):
    """Conduct of a round, for any strategy."""

    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of an update in a mean: its number of examples, or one."""
    quorum_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Fraction of the cohort whose updates must arrive. Below it the run fails and lists why each update is missing."""
    deadline_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds after which each exchange of a round (training, a probe, what a monitor asks) closes with what has
    arrived, if that is a quorum. None waits for everybody."""
    oversample_fraction: Annotated[float, Field(ge=0.0)] = 0.0
    """Extra clients sampled, as a fraction of the cohort. The round closes once as many as the cohort have returned
    updates; which ones depends on their speed, so results are no longer bit-identical between runs."""
    reserve_fraction: Annotated[float, Field(ge=0.0)] = 0.0
    """Reserve clients, as a fraction of the cohort: one replaces each failed client."""
    group_size: Annotated[int, Field(ge=1)] | None = None
    """Clients trained and aggregated together. None takes ceil(cohort / 12). Changes the result bit for bit; the
    number of workers does not."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """How often a group is reassigned after the process working on it has died."""
    state_home: Literal["server", "node"] = "server"
    """Where the state of stateful clients is stored between rounds: on the server, or on the node that trained the
    client, which never sends it. `node` needs clients that always train on the same node, and `checkpoint.every` of at
    most 2: a node stores the states of each client's last 4 rounds, for a run that is resumed."""


class FleetSettings(Settings):
    """Which nodes of a standing server do a run. Means nothing in a simulation."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a label's value on the command line may look like a number

    labels: dict[str, FreeText] = Field(default_factory=dict)
    """Nodes with all these labels serve the run; empty for every node. Selects nodes, not clients: the result changes
    only if a node's own data replaces the workload's."""
    min_nodes: Annotated[int, Field(ge=1), SERVER_ONLY] = 1
    """Nodes with these labels that must be connected before work is given out; until then the run waits."""


class EvaluationSettings(Settings):
    """Evaluation of the global model on held-out data."""

    every: Annotated[int, Field(ge=0)] = 1
    """Evaluate every N rounds and after the last. 0 disables."""
    parts: Annotated[int, Field(ge=1)] = 4
    """Parts the test set is split into, evaluated in parallel. Changes the last bits of the metrics."""
    deadline_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds after which an evaluation ends with the pieces that have arrived, if `round.quorum_fraction` of them
    have; else the round has no evaluation. None takes `round.deadline_s`."""


class CheckpointSettings(Settings):
    """Persistence of a run, for resuming after a failure."""

    every: Annotated[int, Field(ge=1)] = 1
    """Save every N rounds and after the last."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Number of newest checkpoints on disk."""
    answers: bool = True
    """On a standing server: write each result to disk before it is acknowledged, so that no client trains twice if the
    server is killed within a round. Needs space for one model per group until the next checkpoint."""


class RuntimeSettings(Settings):
    """Where clients run. Never changes a result, so it is not part of an experiment's identity."""

    name: Literal["ray", "process", "inline"] = "ray"
    """`ray` spawns the agents as Ray actors, `process` forks them here, `inline` runs them in the calling thread."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Number of agents; None takes one per core (of the Ray cluster, for `ray`) this process may use: CPU affinity and
    the limits of its control groups on CPU, memory (512 MB for each) and processes count."""
    ray_address: PlainWord | None = None
    """Address of a running Ray cluster (`auto`, or `HOST:PORT`). None: `RAY_ADDRESS` if it is set, otherwise Ray is
    started here."""
    cpus_per_worker: Annotated[float, Field(gt=0.0)] = 1.0
    """CPUs Ray reserves for each agent."""
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs, or fractions of one, Ray reserves for each agent."""


_WITH_FIELD = (Kind.STRATEGY, Kind.WORKLOAD, Kind.SELECTION, Kind.MONITOR)
"""Kinds whose section `Experiment` declares with a specific type, because the platform's code reads it by name."""
if typing.TYPE_CHECKING:
    _FurtherSections = Settings
else:
    _FurtherSections = pydantic.create_model(
        "_FurtherSections",
        __base__=Settings,
        **{
            kind.section: (
                SerializeAsAny[PluginSettings] | (PluginSettings if kind.required else None),
                Field(
                    default=... if kind.required else None,
                    validate_default=kind.default is not None,
                    description=f"A plug-in of the kind `{kind}`, and its settings.",
                ),
            )
            for kind in Kind
            if kind not in _WITH_FIELD
        },
    )


class Experiment(_FurtherSections):
    """A federated experiment: strategy, workload, clients and how they run. Written once, run anywhere."""

    name: Annotated[FreeText, Field(max_length=200)] = "experiment"
    """Display name; part of the run id."""
    rounds: Annotated[int, Field(ge=1, lt=2**32)] | Literal["open"]
    """Rounds to run, T. Rounds count from 1. `open`: until the strategy plans no further round or the run is stopped;
    a schedule over all rounds needs a number."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Seed of all randomness: same seed, same bits."""
    clients: Annotated[int, Field(ge=1)] = 1
    """Clients in the federation, N."""
    cohort: Annotated[int, Field(ge=1)] | None = None
    """Clients sampled in each round, m; None samples all."""
    strategy: SerializeAsAny[PluginSettings]
    """The aggregation strategy and its settings."""
    workload: SerializeAsAny[PluginSettings]
    """Data, model and local training, and their settings."""
    selection: SerializeAsAny[PluginSettings] = Field(default=None, validate_default=True)
    """Client selection; uniform sampling if it is not given."""
    monitor: SerializeAsAny[PluginSettings] | None = None
    """Label-free monitoring of the global model on client data, in evaluated rounds. None disables it."""
    round: RoundSettings = RoundSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: Annotated[CheckpointSettings, SERVER_ONLY] = CheckpointSettings()
    runtime: Annotated[RuntimeSettings, SERVER_ONLY] = RuntimeSettings()
    fleet: FleetSettings = FleetSettings()

    @pydantic.field_validator(*SECTIONS, mode="before")
    @classmethod
    def _plugin(cls, value: object, info: pydantic.ValidationInfo) -> PluginSettings | None:
        """Read a plug-in's section with the plug-in's own `Config`."""
        kind = SECTIONS[str(info.field_name)]
        if value is None and kind.default is not None:
            strategy = info.data.get(Kind.STRATEGY.section)
            value = strategy.default_for(kind) if isinstance(strategy, PluginSettings) else kind.default
        if value is None and not kind.required:
            return None
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, PluginSettings):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(f'expected a table with at least `name = "…"`, one of {", ".join(registry.names(kind))}')
        config = plugin_schema(kind, value["name"])
        try:
            return config.model_validate(value)
        except pydantic.ValidationError as exc:
            raise config_error(exc, config, prefix=(str(info.field_name),)) from exc

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cohort is not None and self.cohort > self.clients:
            raise ConfigError(
                f"cohort: {self.cohort} clients per round, but the federation has clients = {self.clients}"
            )
        most = NODE_STATE_ROUNDS - 2  # the current round and, until it ends, the one being saved
        if self.round.state_home == "node" and self.checkpoint.every > most:
            raise ConfigError(
                f"checkpoint.every: expected at most {most} with round.state_home = 'node', got "
                f"{self.checkpoint.every}. A node keeps the states of each client's last {NODE_STATE_ROUNDS} rounds, "
                "and a resumed run may need the state of its checkpoint's round"
            )
        return self

    @property
    def cohort_size(self) -> int:
        """Clients sampled in each round."""
        return self.clients if self.cohort is None else self.cohort

    @property
    def num_oversampled(self) -> int:
        """Extra clients sampled at the start of a round."""
        return math.ceil(self.cohort_size * self.round.oversample_fraction - 1e-9)

    @property
    def num_drawn(self) -> int:
        """Clients a selection chooses in each round: cohort, extra clients and reserve."""
        reserve = math.ceil(self.cohort_size * self.round.reserve_fraction - 1e-9)
        return min(self.clients, self.cohort_size + self.num_oversampled + reserve)

    @property
    def weighs_by_examples(self) -> bool:
        """Whether an update weighs as much as its examples; the only one of its round weighs one, which is exact."""
        return self.round.weighting == "examples" and self.cohort_size > 1

    @property
    def group_size(self) -> int:
        """Clients per group: the setting, or what follows from the cohort's size alone."""
        return self.round.group_size or -(-self.cohort_size // 12)

    @classmethod
    def parse(cls, values: Info) -> Experiment:
        """Build an experiment from a dictionary of the TOML's form.

        Raises:
            ConfigError: names the key as the user wrote it, the value, what was expected, the nearest valid key.
            UnknownName: a strategy, workload or selection that is not installed.
        """
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as exc:
            raise config_error(exc, cls) from exc

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
        """Read a TOML file, then apply `key=value` overrides.

        Plug-in names that are paths (`./mine.py`, `./mine`) are looked up next to the TOML file, and so are the files
        of code that settings name (`./net.py:build`), unless they are in the working directory alone.
        """
        path = Path(path)
        try:
            values = read_toml(path)
        except FileNotFoundError as exc:
            raise ConfigError(f"experiment file {str(path)!r} not found (looked in {Path.cwd()})") from exc
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be read as an experiment file: {exc.strerror}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
        for section in SECTIONS:
            table = values.get(section)
            if isinstance(table, str):
                table = values[section] = {"name": table}
            if isinstance(table, dict) and registry.is_path(str(table.get("name", ""))):
                table["name"] = str((path.parent / table["name"]).resolve())
        return cls._overridden(values, overrides)._with_code_beside(path.parent)

    def _with_code_beside(self, folder: Path) -> Experiment:
        """Return a copy in which files of code that lie in a folder, and not in the working directory, are absolute."""
        moved = self.to_dict()
        for each in self.code_files():
            beside = (folder / each.path).resolve()
            if each.steps != ("name",) and beside.is_file() and beside != Path(each.path).resolve():
                set_text(moved[each.section], each.steps, f"{beside}{each.rest}")
        return self.parse(moved) if moved != self.to_dict() else self

    def code_files(self) -> Iterator[CodeFile]:
        """Yield the files and folders of code that plug-ins' names and settings of the kind `CODE` refer to."""
        for section in SECTIONS:
            settings = self.__dict__[section]
            if settings is None:
                continue
            for text in text_settings(type(settings), settings.model_dump(mode="json", exclude_none=True)):
                place, colon, attribute = text.value.rpartition(":")
                if text.steps == ("name",) and registry.is_path(text.value):
                    yield CodeFile(section, text.steps, text.value, "")
                elif text.kind is SettingKind.CODE and place.endswith(".py"):
                    yield CodeFile(section, text.steps, place, colon + attribute)

    @classmethod
    def _overridden(cls, values: Info, overrides: Sequence[str]) -> Experiment:
        """Parse settings with overrides; what looks like a number, such as `name=2024`, is text where text is meant."""
        try:
            return cls.parse(with_overrides(values, overrides))
        except ConfigError:
            for as_text in _text_variants(overrides):
                with contextlib.suppress(ConfigError):
                    return cls.parse(with_overrides(values, as_text))
            raise

    def override(self, overrides: Sequence[str]) -> Experiment:
        """Return a copy with `key=value` settings changed."""
        return self._overridden(self.to_dict(), overrides) if overrides else self

    def to_dict(self) -> JsonObject:
        """Return the resolved experiment, defaults included; `parse` reads it. Settings that are None are omitted."""
        return self.model_dump(mode="json", exclude_none=True)

    def for_nodes(self) -> JsonObject:
        """Return the resolved experiment as sent to nodes: without settings marked as server-only."""
        values = self.to_dict()
        for section in server_only_fields(Experiment):
            values.pop(section, None)
        for section in SECTIONS:
            table = values.get(section)
            if isinstance(table, dict):
                private = server_only_fields(type(self.__dict__[section]))
                values[section] = {key: value for key, value in table.items() if key not in private}
        return values

    def rounds_known(self, needed_by: str) -> int:
        """Return the number of rounds T.

        Raises:
            ConfigError: the number is open; `needed_by` names what needs it.
        """
        if self.rounds == "open":
            raise ConfigError(f"rounds: {needed_by} needs the number of rounds, but rounds is 'open'; set a number")
        return self.rounds

    @property
    def max_rounds(self) -> int | None:
        """Return the number of rounds T; None if it is open."""
        return None if self.rounds == "open" else self.rounds

    def identity(self) -> JsonObject:
        """Return all that decides the result: no section of `INCIDENTAL`; files of code by name and SHA-256."""
        values = {key: value for key, value in self.to_dict().items() if key not in INCIDENTAL}
        for each in self.code_files():
            path = Path(each.path)
            if path.exists():
                digest = f"{path.name} (SHA-256 {code_digest(path)})"
                set_text(values[each.section], each.steps, f"{digest}{each.rest}")
        return values

    def fingerprint(self) -> str:
        """Digest of `identity`."""
        values = self.identity()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def plugin_schema(kind: str, name: str) -> type[PluginSettings]:
    """Return the `Config` of a plug-in.

    Raises:
        UnknownName: nothing by this name is installed here.
        ConfigError: it defines none.
    """
    found = vars(registry.part(kind, name, "config")).get("Config")
    if not isinstance(found, type) or not issubclass(found, PluginSettings):
        section = Kind(kind).section
        raise ConfigError(f"{section}.name: {name!r} defines no class Config(fedloom.core.config.PluginSettings)")
    return found


def is_incidental(key: str) -> bool:
    """Return whether a setting, by its dotted key, never changes a result."""
    return key.partition(".")[0] in INCIDENTAL


def with_overrides(values: Info, overrides: Sequence[str]) -> JsonObject:
    """Apply `a.b=c` settings to a dictionary; the right side is TOML if it parses, otherwise a string."""
    result: JsonObject = copy.deepcopy(dict(values))
    for override in overrides:
        key, equals, text = override.partition("=")
        steps = key.strip().split(".")
        if not equals or not all(steps):
            raise ConfigError(f"--set {override!r}: expected KEY=VALUE, such as --set strategy.mu=0.1")
        table = result
        for step in steps[:-1]:
            inner = table.setdefault(step, {})
            if isinstance(inner, str) and step in SECTIONS:
                inner = table[step] = {"name": inner}
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: {step!r} is a value ({inner!r}), not a table with keys")
            table = inner
        table[steps[-1]] = _toml_value(text.strip())
    return result


_MOST_VARIANTS = 4
"""Overrides that are tried as text, together, at most."""


def _text_variants(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides with those that TOML reads as anything but text quoted: first one of them, then more."""
    other = []
    for index, override in enumerate(overrides):
        _, equals, text = override.partition("=")
        if equals and not isinstance(_toml_value(text.strip()), str):
            other.append(index)
    for count in range(1, min(len(other), _MOST_VARIANTS) + 1):
        for chosen in itertools.combinations(other, count):
            yield [_as_text(each) if index in chosen else each for index, each in enumerate(overrides)]


def _as_text(override: str) -> str:
    key, _, text = override.partition("=")
    return f"{key}={json.dumps(text.strip())}"


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def config_error(exc: pydantic.ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> ConfigError:
    """Turn a validation error into the user's terms: key, value, what was expected, the nearest valid key."""
    lines, said = [], set[str]()
    for error in exc.errors():
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            return cause
        location, known = _follow(model, error["loc"])
        key = ".".join((*prefix, *location)) or "experiment"
        if key in said:
            continue  # another member of a union, which the value fits no better
        said.add(key)
        if error["type"] == "extra_forbidden":
            near = nearest(location[-1], known, cutoff=0.5)
            hint = f"did you mean {'.'.join((*prefix, *location[:-1], near))!r}?" if near else "remove it;"
            lines.append(f"{key}: unknown setting (value {error['input']!r}); {hint} known here: {', '.join(known)}")
        elif error["type"] == "union_tag_not_found":
            lines.append(f"{key}.{_unquoted(error, 'discriminator')}: required, but missing; it selects the kind")
        elif error["type"] == "union_tag_invalid":
            tag = f"{key}.{_unquoted(error, 'discriminator')}"
            lines.append(f"{tag}: expected one of {error['ctx']['expected_tags']}, got {error['ctx']['tag']!r}")
        elif error["type"] == "missing":
            lines.append(f"{key}: required, but missing")
        else:
            lines.append(f"{key}: {error['msg']}, got {error['input']!r}")
    return ConfigError("\n".join(lines))


def _follow(model: type[BaseModel], location: Sequence[str | int]) -> tuple[tuple[str, ...], list[str]]:
    """Return an error's location as the user wrote it, and the settings valid at its last step.

    Pydantic's own location also names the tag of the union's member it chose; the tag is no key of the file.
    """
    written: list[str] = []
    here: list[type[BaseModel]] = [model]
    for index, step in enumerate(location):
        tagged = [kind for kind in here if _has_tag(kind, step)]
        if len(here) > 1 and tagged and index + 1 < len(location):
            here = tagged
            continue
        if index and not here and not isinstance(step, int):
            continue  # the name of a plain type, if a value may have several types
        written.append(str(step))
        if index + 1 < len(location):
            fields = [kind.model_fields[str(step)] for kind in here if str(step) in kind.model_fields]
            inner = [kind for field in fields for kind in _flatten(field.annotation)]
            here = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return tuple(written), sorted({name for kind in here for name in kind.model_fields})


def _has_tag(kind: type[BaseModel], tag: str | int) -> bool:
    """Return whether a member of a union is the one with this tag."""
    literals = (f.annotation for f in kind.model_fields.values() if typing.get_origin(f.annotation) is Literal)
    return any(tag in typing.get_args(literal) for literal in literals)


def _unquoted(error: ErrorDetails, name: str) -> str:
    return str(error["ctx"][name]).strip("'")


def _flatten(annotation: object) -> list[object]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _flatten(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for option in typing.get_args(annotation) for kind in _flatten(option)]
    return [annotation]
