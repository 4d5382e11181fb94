"""A study's definition: one base experiment, scenarios and arms that change it, seeds, and claims."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, TypeVar

import pydantic
from pydantic import Field

# The translation of validation errors into the user's own terms is the experiment's; a study's errors read the same.
from fedloom.core.config import Settings, config_error
from fedloom.core.errors import ConfigError
from fedloom.core.records import Info, JsonObject
from fedloom.core.text import did_you_mean
from fedloom.reporting.study_part import StaticTest
from fedloom.studies.claim_settings import Claim

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
T = TypeVar("T", bound=Settings)
S = TypeVar("S", bound=StaticTest)


class Seeds(Settings):
    """Which seeds each scenario is run with. Arms of the same seed share data, partition and initial model."""

    first: Annotated[int, Field(ge=0)] = 1
    """The first seed; the others follow it."""
    count: Annotated[int, Field(ge=1)] = 5
    """Seeds for each scenario and arm."""


class Target(Settings):
    """The value of the metric a run has to reach, for each scenario."""

    share: Annotated[float, Field(gt=0.0)] = 0.9
    """Fraction of the reference arm's final value (median over seeds) to reach."""
    value: float | None = None
    """The value itself; None computes it from `share`."""
    last: Annotated[int, Field(ge=1)] = 5
    """Last evaluated rounds whose mean is a run's final value."""


class Arm(Settings):
    """One of the alternatives compared, as changes to the scenario's experiment."""

    title: str = ""
    """A few words for people; by default the arm's name."""
    change: JsonObject = Field(default_factory=dict)
    """Settings of the experiment, as in its TOML. A table is merged into the existing one; one of another kind (its
    `name`, `scheme` or `source` differs) replaces it."""


class Scenario(Arm):
    """Conditions all arms are compared under, as changes to the base experiment."""

    base: str | JsonObject | None = None
    """Another base experiment for this scenario."""
    seeds: Annotated[int, Field(ge=1)] | None = None
    """Another number of seeds for this scenario."""


class Definition(Settings):
    """A study. Experiments = scenarios x arms x seeds.

    A file may also say `extends = STUDY` (a name, or a TOML file next to it): each of its top-level keys then
    replaces that study's, and the others are taken from it.
    """

    name: str
    """Name of the study and of its folder."""
    title: str = ""
    """One sentence for people."""
    base: str | JsonObject
    """The experiment every run starts from: a preset's name, a TOML file (next to this one), or a table."""
    change: JsonObject = Field(default_factory=dict)
    """Changes to every base experiment, including the scenarios'."""
    scenarios: dict[str, Scenario] = Field(default_factory=dict)
    """Conditions, by name. Without any there is one scenario, `base`."""
    arms: dict[str, Arm]
    """Alternatives to compare, by name; applied after the scenario."""
    reference: str
    """The arm others are compared with."""
    seeds: Seeds = Seeds()
    metric: str = "accuracy"
    """Metric on held-out data to compare."""
    better: Literal["higher", "lower"] = "higher"
    """Which values of the metric are better."""
    target: Target = Target()
    analyses: tuple[str, ...] = ("balance", "participation")
    """Further measurements of each run: `balance`, `participation`, `own` (the numbers of the plug-ins' reports), and
    those of installed plug-ins."""
    tests: dict[str, JsonObject] = Field(default_factory=dict)
    """Tests next to the runs, by name, as installed plug-ins define them: `arm`, `scenarios`, and own settings."""
    highlight: tuple[str, ...] = ()
    """Arms drawn with bands; by default the first five."""
    tables: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Tables of a published page, by title: arms that are comparable enough for one table. By default one of all."""
    grid: str = ""
    """What was tuned, over which values and seeds, for which arms; printed with the published tables."""
    claims: tuple[Claim, ...] = ()
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    """Maximum number of rounds a killed run loses."""

    @pydantic.field_validator("scenarios", "arms", mode="before")
    @classmethod
    def _by_name(cls, value: object, info: pydantic.ValidationInfo) -> Mapping[str, Scenario | Arm]:
        field = str(info.field_name)
        kind = Scenario if field == "scenarios" else Arm
        if not isinstance(value, Mapping):
            raise ValueError("expected a table of tables")
        for name in value:
            if not _FOLDER_NAME.fullmatch(name):
                raise ConfigError(f"{field}: {name!r} cannot be a folder's name. Use letters, digits and . + _ -")
        return {name: _parsed(kind, item, (field, name)) for name, item in value.items()}

    @pydantic.field_validator("tests")
    @classmethod
    def _file_names(cls, value: dict[str, JsonObject]) -> dict[str, JsonObject]:
        for name in value:
            if not _FOLDER_NAME.fullmatch(name):
                raise ConfigError(f"tests: {name!r} cannot be a file's name. Use letters, digits and . + _ -")
        return value

    @pydantic.field_validator("claims", mode="before")
    @classmethod
    def _each_claim(cls, value: object) -> tuple[Claim, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError("expected a list of tables")
        return tuple(_parsed(Claim, item, ("claims", str(index))) for index, item in enumerate(value))

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if not _FOLDER_NAME.fullmatch(self.name):
            raise ConfigError(f"name: {self.name!r} cannot be a folder's name. Use letters, digits and . + _ -")
        if not self.arms:
            raise ConfigError("arms: a study compares at least one arm, got none")
        _known("reference", self.reference, self.arms)
        for arm in self.highlight:
            _known("highlight", arm, self.arms)
        for title, arms in self.tables.items():
            for arm in arms:
                _known(f"tables.{title}", arm, self.arms)
        for claim in self.claims:
            for arm in (claim.arm, *([claim.against] if claim.against else [])):
                _known(f"claims ({claim.id}): arm", arm, self.arms)
            for scenario in (*claim.scenarios, *claim.earlier):
                _known(f"claims ({claim.id}): scenario", scenario, self.conditions)
        return self

    @property
    def conditions(self) -> Mapping[str, Scenario]:
        """Return the scenarios; one that changes nothing if none is defined."""
        return self.scenarios or {"base": Scenario()}

    def seeds_of(self, scenario: str) -> range:
        """Return the seeds of a scenario."""
        count = self.conditions[scenario].seeds or self.seeds.count
        return range(self.seeds.first, self.seeds.first + count)

    def parse_test(self, name: str, kind: type[S]) -> S:
        """Read the table `tests.NAME` with the class of the test.

        Raises:
            ConfigError: a setting is wrong, or it names an arm or a scenario that is not defined.
        """
        test = _parsed(kind, self.tests[name], ("tests", name))
        _known(f"tests.{name}.arm", test.arm, self.arms)
        for scenario in test.scenarios:
            _known(f"tests.{name}.scenarios", scenario, self.conditions)
        return test

    def with_seeds(self, count: int) -> Definition:
        """Return the same study with this number of seeds in every scenario."""
        scenarios = {name: each.model_copy(update={"seeds": None}) for name, each in self.scenarios.items()}
        return self.model_copy(update={"seeds": self.seeds.model_copy(update={"count": count}), "scenarios": scenarios})

    @classmethod
    def parse(cls, values: Info) -> Definition:
        """Build a definition from a dictionary of the TOML's form.

        Raises:
            ConfigError: names the key as the user wrote it, the value, what was expected, the nearest valid key.
        """
        return _parsed(cls, values, ())


def _parsed(kind: type[T], values: object, prefix: tuple[str, ...]) -> T:
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as exc:
        raise config_error(exc, kind, prefix=prefix) from exc


def _known(key: str, name: str, among: Info) -> None:
    if name not in among:
        hint = did_you_mean(name, among)
        raise ConfigError(f"{key}: {name!r} is not defined; {hint}known here: {', '.join(among)}")
