"""The experiment: one frozen value, read from TOML, from a dictionary, or built in Python."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Literal, Self, Unpack

import pydantic
from pydantic import Field, SerializeAsAny

from fedloom.core import registry
from fedloom.core.code_files import CodeFile, code_digest, set_text
from fedloom.core.config.code_settings import code_of_section, name_of
from fedloom.core.config.data_paths import data_paths, sections_of, start_at, start_here
from fedloom.core.config.experiment_file import read_experiment_file
from fedloom.core.config.further_sections import FurtherSections
from fedloom.core.config.overrides import text_variants, with_overrides
from fedloom.core.config.plugin_section import read_section
from fedloom.core.config.sections import (
    INCIDENTAL,
    NODE_STATE_ROUNDS,
    BestSettings,
    CheckpointSettings,
    EvaluationSettings,
    FleetSettings,
    RoundSettings,
    RuntimeSettings,
)
from fedloom.core.config.settings import PluginSettings
from fedloom.core.config.sites import (
    are_sites,
    check_excluded,
    check_fine_tuning,
    check_meaning,
    check_sites,
    make_sites,
    meaningless,
    without_meaning,
)
from fedloom.core.config.validation import config_error
from fedloom.core.errors import ConfigError
from fedloom.core.experiment_arguments import ExperimentArguments
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.records import Info, JsonObject
from fedloom.core.setting_types import (
    DATA,
    SERVER_ONLY,
    FreeText,
    PlainWord,
    TextSetting,
    server_only_fields,
    text_settings,
)

_log = logging.getLogger(__name__)
_parsing: ContextVar[bool] = ContextVar("_parsing", default=False)
"""Whether an experiment is made by `parse`, maybe while a run uses the modules of its plug-ins."""


class Experiment(FurtherSections):
    """A federated experiment: strategy, workload, clients and how they run. Written once, run anywhere."""

    name: Annotated[FreeText, Field(max_length=200)] = "experiment"
    """Display name; part of the run id."""
    rounds: Annotated[int, Field(ge=1, lt=2**32)] | Literal["open"]
    """Rounds to run, T. Rounds count from 1. `open`: until the strategy plans no further round or the run is stopped;
    a schedule over all rounds needs a number."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Seed of all randomness: same seed, same bits."""
    clients: Annotated[int, Field(ge=1)] | Literal["nodes"] | Annotated[tuple[PlainWord, ...], Field(min_length=1)] = 1
    """Clients in the federation, N. `nodes`: each enrolled node is one client, a site with its own data; a list:
    the nodes of these names are, and the run begins once all of them are connected. Sites need a server."""
    cohort: Annotated[int, Field(ge=1)] | None = None
    """Clients sampled in each round, m; None samples all."""
    excluded: tuple[Annotated[int, Field(ge=0)] | PlainWord, ...] = ()
    """Clients that never take part: neither sampled, nor observed by a monitor, and nothing of theirs is accepted.
    Numbers of virtual clients; names of sites. `fedloom forget` sets it for who has withdrawn."""
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
    best: Annotated[BestSettings | None, SERVER_ONLY] = None
    checkpoint: Annotated[CheckpointSettings, SERVER_ONLY] = CheckpointSettings()
    runtime: Annotated[RuntimeSettings, SERVER_ONLY] = RuntimeSettings()
    fleet: FleetSettings = FleetSettings()

    def __init__(self, /, **settings: Unpack[ExperimentArguments]) -> None:
        """Check the settings; a wrong one is a `ConfigError` in the words of `parse`."""
        if not _parsing.get():  # a program's own call: files of plug-ins may have been edited since the last one
            registry.forget_changed()
        try:
            super().__init__(**dict(settings))
        except pydantic.ValidationError as exc:
            raise config_error(exc, type(self)) from exc

    @pydantic.field_validator(*SECTIONS, mode="before")
    @classmethod
    def _plugin(cls, value: object, info: pydantic.ValidationInfo) -> PluginSettings | None:
        """Read a plug-in's section with the plug-in's own `Config`."""
        strategy = info.data.get(Kind.STRATEGY.section)
        return read_section(str(info.field_name), value, strategy)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _has_meaning(cls, values: object) -> object:
        """Refuse settings that have no meaning where clients are sites."""
        if isinstance(values, Mapping) and are_sites(values.get("clients")):
            check_meaning(values)
        return values

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        check_sites(self.clients, self.round.min_sites)
        check_fine_tuning(self.clients, self.evaluation.fine_tune)
        check_excluded(self.clients, self.excluded)
        if self.cohort is not None and isinstance(self.clients, int) and self.cohort > self.clients:
            raise ConfigError(
                f"cohort: {self.cohort} clients per round, but the federation has clients = {self.clients}"
            )
        if self.checkpoint.client_updates and not self.of_sites and self.round.group_size != 1:
            raise ConfigError(
                "checkpoint.client_updates: needs each client's own update, but clients are aggregated in groups where "
                f"they train (round.group_size is {self.round.group_size or 'not set'}). Set round.group_size = 1; the "
                "result depends on it bit for bit"
            )
        if self.best is not None and self.evaluation.every == 0:
            raise ConfigError("best: needs evaluations, but evaluation.every is 0; set it to 1 or more")
        most = NODE_STATE_ROUNDS - 2  # the current round and, until it ends, the one being saved
        if self.state_home == "node" and self.checkpoint.every > most:
            why = "where clients are sites" if self.of_sites else "with round.state_home = 'node'"
            raise ConfigError(
                f"checkpoint.every: expected at most {most} {why}, got "
                f"{self.checkpoint.every}. A node keeps the states of each client's last {NODE_STATE_ROUNDS} rounds, "
                "and a resumed run may need the state of its checkpoint's round"
            )
        return self

    @property
    def of_sites(self) -> bool:
        """Return whether each client is an enrolled node with its own data."""
        return are_sites(self.clients)

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names that `clients` lists; none if it lists none."""
        return self.clients if isinstance(self.clients, tuple) else ()

    @property
    def excluded_numbers(self) -> frozenset[int]:
        """Return the numbers of the virtual clients that never take part; none if clients are sites."""
        return frozenset(each for each in self.excluded if isinstance(each, int))

    @property
    def min_sites(self) -> int:
        """Return the number of sites that a round needs."""
        return self.round.min_sites or 1

    @property
    def num_clients(self) -> int:
        """Return the number of clients N.

        Raises:
            ConfigError: it is unknown, since clients are sites.
        """
        if not isinstance(self.clients, int):
            raise ConfigError(
                f"clients: expected a number, which a part of this experiment needs, got {self.clients!r}. Set a number"
            )
        return self.clients

    def at_site(self) -> Experiment:
        """Return the experiment as the workload of a site sees it: a federation of one client."""
        return self.model_copy(update={"clients": 1, "cohort": None}) if self.of_sites else self

    def reads_data_of_nodes(self) -> bool:
        """Return whether the workload reads a path below each node's own data folder (`$DATA`)."""
        texts = text_settings(type(self.workload), self.workload.model_dump(mode="json", exclude_none=True))
        return any(text.value == DATA or text.value.startswith(f"{DATA}/") for text in texts)

    def quorum_of(self, quota: int) -> float:
        """Return the fraction of the requested updates that must arrive, of `quota` of them."""
        if self.of_sites and self.round.quorum_fraction == 1.0 and quota:
            return min(1.0, self.min_sites / quota)
        return self.round.quorum_fraction

    @property
    def state_home(self) -> Literal["server", "node"]:
        """Return where clients' state is stored."""
        return "node" if self.of_sites else self.round.state_home

    def cohort_of(self, population: int) -> int:
        """Return how many of a number of clients are sampled in each round."""
        return population if self.cohort is None else min(self.cohort, population)

    def oversampled_of(self, population: int) -> int:
        """Return how many extra clients of a number of clients are sampled at the start of a round."""
        return math.ceil(self.cohort_of(population) * self.round.oversample_fraction - 1e-9)

    def drawn_of(self, population: int) -> int:
        """Return how many of a number of clients a selection chooses: cohort, extra clients and reserve."""
        cohort = self.cohort_of(population)
        reserve = math.ceil(cohort * self.round.reserve_fraction - 1e-9)
        return min(population, cohort + self.oversampled_of(population) + reserve)

    @property
    def cohort_size(self) -> int:
        """Return the number of clients sampled in each round; raises as `num_clients`."""
        return self.cohort_of(self.num_clients)

    @property
    def weighs_by_examples(self) -> bool:
        """Return whether updates are weighted by their examples; the only one of a round has weight 1, exactly.

        Several may come in a round of a cohort of one: a group with extra or reserve clients is aggregated as a whole.
        """
        if self.round.weighting != "examples":
            return False
        return self.of_sites or self.cohort_size > 1 or (self.group_size > 1 and self.drawn_of(self.num_clients) > 1)

    @property
    def group_size(self) -> int:
        """Return the clients per group: the setting, or a function of the cohort's size alone. A site is a group."""
        return 1 if self.of_sites else self.round.group_size or -(-self.cohort_size // 12)

    @classmethod
    def parse(cls, values: Info) -> Experiment:
        """Build an experiment from a dictionary of the TOML's form.

        Raises:
            ConfigError: names the key as the user wrote it, the value, what was expected, the nearest valid key.
            UnknownName: a strategy, workload or selection that is not installed.
        """
        before = _parsing.set(True)
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as exc:
            raise config_error(exc, cls) from exc
        finally:
            _parsing.reset(before)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), *, data_elsewhere: bool = False) -> Experiment:
        """Read a TOML file, then apply `key=value` overrides.

        Plug-in names that are paths (`./mine.py`, `./mine`) are looked up next to the TOML file, and so are the files
        of code that settings name (`./net.py:build`) and paths of data, unless they are in the working directory alone.

        Args:
            path: of the file.
            overrides: their paths start at the working directory.
            data_elsewhere: leave paths of data as they are written, because other machines read them.
        """
        registry.forget_changed()
        values = read_experiment_file(Path(path))
        return cls._overridden(values, overrides)._with_files_beside(
            Path(path).parent, None if data_elsewhere else overrides
        )

    def _with_files_beside(self, folder: Path, overrides: Sequence[str] | None) -> Experiment:
        """Return a copy in which code, apps and, unless `overrides` is None, data that lie in a folder are absolute."""
        moved = self.to_dict()
        if overrides is not None:
            start_at(folder, sections_of(self.__dict__), moved, overrides)
        for each in self.code_files(apps=True):
            beside = (folder / each.path).resolve()
            if each.steps != ("name",) and beside.exists() and beside != Path(each.path).resolve():
                set_text(moved[each.section], each.steps, f"{beside}{each.rest}")
        return self.parse(moved) if moved != self.to_dict() else self

    def with_data_here(self) -> Experiment:
        """Return a copy in which paths of data that lie in the working directory are absolute."""
        moved = self.to_dict()
        start_here(sections_of(self.__dict__), moved)
        return self.parse(moved) if moved != self.to_dict() else self

    def data_paths(self) -> Iterator[tuple[str, TextSetting]]:
        """Yield the settings that are paths of data, each with its section."""
        yield from data_paths(sections_of(self.__dict__))

    def code_files(self, *, apps: bool = False) -> Iterator[CodeFile]:
        """Yield the files and folders of code that plug-ins' names and settings of the kind `CODE` refer to.

        Args:
            apps: yield the folders of hosted apps, too.
        """
        for section in SECTIONS:
            settings = self.__dict__[section]
            if settings is not None:
                yield from code_of_section(section, settings, apps=apps)

    @classmethod
    def _overridden(cls, values: Info, overrides: Sequence[str]) -> Experiment:
        """Parse settings with overrides; what looks like a number, such as `name=2024`, is text where text is meant."""
        dropped = meaningless(values) if make_sites(values, overrides) else []
        values = without_meaning(values) if dropped else values
        found = cls._parsed_with(values, overrides)
        if dropped:
            _log.warning("%s: ignored, because clients are sites", ", ".join(dropped))
        return found

    @classmethod
    def _parsed_with(cls, values: Info, overrides: Sequence[str]) -> Experiment:
        try:
            return cls.parse(with_overrides(values, overrides))
        except ConfigError:
            for as_text in text_variants(overrides):
                with contextlib.suppress(ConfigError):
                    return cls.parse(with_overrides(values, as_text))
            raise

    def override(self, overrides: Sequence[str]) -> Experiment:
        """Return a copy with `key=value` settings changed."""
        return self._overridden(self.to_dict(), overrides) if overrides else self

    def to_dict(self) -> JsonObject:
        """Return the resolved experiment, defaults included; `parse` reads it.

        Settings that are None, or have no meaning for its clients, are omitted.
        """
        values = self.model_dump(mode="json", exclude_none=True)
        return without_meaning(values) if self.of_sites else values

    def with_code_names(self, *, paths: bool = False, missing: bool = False) -> JsonObject:
        """Return the resolved experiment with files and folders of code by name and SHA-256, as other machines read it.

        Args:
            paths: add the path, for a server that takes its own file there from an administrator.
            missing: leave paths as they are where there is no such file here; else they are errors.

        Raises:
            ConfigError: there is no such file or folder here, or it cannot be read.
        """
        values = self.to_dict()
        for each in self.code_files(apps=True):
            if not missing or Path(each.path).expanduser().exists():
                set_text(values[each.section], each.steps, name_of(each, with_path=paths))
        return values

    def for_nodes(self, *, code_names: bool = False) -> JsonObject:
        """Return the resolved experiment as sent to nodes: without settings marked as server-only.

        Args:
            code_names: name code by name and SHA-256 instead of paths, as for nodes on other machines.

        Raises:
            ConfigError: code has no copy here to compute a digest of.
        """
        values = self.with_code_names() if code_names else self.to_dict()
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
        """Return all that decides the result: no section of `INCIDENTAL`; files of code by name and SHA-256.

        Where clients are sites, the labels that choose them are part of it.
        """
        values = {key: value for key, value in self.to_dict().items() if key not in INCIDENTAL}
        if self.of_sites:
            values["fleet"] = {"labels": dict(self.fleet.labels)}
        for each in self.code_files():
            path = Path(each.path)
            if path.exists():
                digest = f"{path.name} (SHA-256 {code_digest(path)})"
                set_text(values[each.section], each.steps, f"{digest}{each.rest}")
        return values

    def fingerprint(self) -> str:
        """Return the digest of `identity`."""
        values = self.identity()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
