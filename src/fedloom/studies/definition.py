"""A study's definition: one base experiment, scenarios and arms that change it, seeds, and claims."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import pydantic
from pydantic import Field

# The translation of validation errors into the user's own terms is the experiment's; a study's errors read the same.
from fedloom.core import definitions
from fedloom.core.config import Settings, config_error, with_overrides
from fedloom.core.errors import ConfigError, UnknownName
from fedloom.core.records import Info, JsonObject
from fedloom.core.text import did_you_mean
from fedloom.core.toml_files import read_toml
from fedloom.reporting.study_part import StaticTest

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_STUDY_KEY = "study."
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


class Check(Settings):
    """A bound on one number of an arm, judged by the number's interval."""

    of: str
    """`NUMBER`, whose whole 95 % interval must lie within the bounds; or `NUMBER.p_less`, `NUMBER.p_greater`, the
    p-value of a primary claim, after Holm's correction over all of the study's."""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def number(self) -> str:
        """Return the number's name."""
        return self.of.partition(".")[0]

    @property
    def part(self) -> str:
        """Return what is bounded: `p_less`, `p_greater`, or an empty text for the number's interval."""
        return self.of.partition(".")[2]

    @property
    def is_p(self) -> bool:
        """Return whether it bounds a p-value."""
        return self.part != ""

    @pydantic.model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.part not in ("", "p_less", "p_greater"):
            raise ConfigError(
                f"claims.checks: {self.of!r} has no part {self.part!r}; write {self.number!r}, which is judged by its "
                f"whole interval, or {self.number}.p_less, {self.number}.p_greater"
            )
        if self.at_most is None and self.at_least is None:
            raise ConfigError(f"claims.checks: {self.of!r} has no bound; set at_most or at_least")
        if self.is_p and (self.at_most is None or self.at_least is not None):
            raise ConfigError(f"claims.checks: {self.of!r} is a p-value; set at_most, and at_most alone")
        return self


class Claim(Settings):
    """A statement and the numbers that decide it."""

    id: str
    """A short name."""
    text: str
    """The statement in words."""
    arm: str
    """The arm it is about."""
    against: str | None = None
    """Another arm than the study's reference to compare it with."""
    scenarios: tuple[str, ...] = ()
    """Scenarios in which it is judged; all if empty."""
    primary: bool = False
    """Whether the study was made for this hypothesis; only then may it bound p-values, which are corrected together."""
    checks: tuple[Check, ...] = ()
    """All must hold. Without any, the numbers of `shows` are only reported."""
    shows: tuple[str, ...] = ()
    """Numbers to report; by default those of the checks."""
    earlier: dict[str, str] = Field(default_factory=dict)
    """Results of an earlier measurement, by scenario; printed next to these."""

    @pydantic.model_validator(mode="after")
    def _p_of_primary_claims(self) -> Self:
        for check in self.checks:
            if check.is_p and not self.primary:
                raise ConfigError(
                    f"claims ({self.id}): {check.of!r} bounds a p-value; set primary = true if the study was made for "
                    "this claim, else bound the number itself"
                )
        return self

    @property
    def subject(self) -> str:
        """Return whose numbers decide: the arm, or `ARM against ARM`."""
        return self.arm if self.against is None else f"{self.arm} against {self.against}"


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


def names() -> tuple[str, ...]:
    """Return the names of the studies that come with fedloom and with installed methods."""
    return tuple(_files())


def titles() -> dict[str, str]:
    """Return what each study of `names` is about."""
    return {name: str(_read(name, ())["title"]) for name in names()}


def load(target: str | Path, overrides: Sequence[str] = ()) -> tuple[Definition, list[str]]:
    """Load a study from its name or a TOML file.

    Args:
        target: which.
        overrides: `KEY=VALUE`. `study.KEY` changes the definition; any other is a setting of every experiment.

    Returns:
        The definition, and the overrides left for the experiments.

    Raises:
        UnknownName: it is neither a study's name nor a file.
        ConfigError: a setting is wrong.
    """
    own = [text.removeprefix(_STUDY_KEY) for text in overrides if text.startswith(_STUDY_KEY)]
    values = with_overrides(_read(target, ()), own)
    return Definition.parse(values), [text for text in overrides if not text.startswith(_STUDY_KEY)]


def _read(target: str | Path, below: tuple[str, ...]) -> JsonObject:
    """Return a study's TOML merged with the one it extends: each of its top-level keys replaces the other's."""
    path = _path(target)
    if str(path) in below:
        raise ConfigError(f"extends: {' extends '.join((*below, str(path)))}: a cycle")
    try:
        values = read_toml(path)
    except FileNotFoundError as exc:
        raise ConfigError(f"study file {str(path)!r} not found (looked in {Path.cwd()})") from exc
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read as a study: {exc}") from exc
    values = _files_beside(values, path.parent)
    extended = values.pop("extends", None)
    return values if extended is None else {**_read(extended, (*below, str(path))), **values}


def _path(target: str | Path) -> Path:
    path = Path(target)
    if path.is_file() or path.suffix == ".toml":
        return path
    files = _files()
    if str(target) not in files:
        hint = did_you_mean(str(target), files)
        raise UnknownName(f"{str(target)!r} is not a study or a TOML file; {hint}studies: {', '.join(files)}")
    return files[str(target)]


def _files_beside(values: JsonObject, folder: Path) -> JsonObject:
    """Resolve base experiments and extended studies that are TOML files next to the study's."""
    extends = values.get("extends")
    if isinstance(extends, str) and extends.endswith(".toml"):
        values["extends"] = str((folder / extends).resolve())
    for table in (values, *(each for each in _tables(values.get("scenarios")))):
        base = table.get("base")
        if isinstance(base, str) and base.endswith(".toml"):
            table["base"] = str((folder / base).resolve())
    return values


def _tables(value: object) -> list[JsonObject]:
    return [each for each in value.values() if isinstance(each, dict)] if isinstance(value, dict) else []


def _parsed(kind: type[T], values: object, prefix: tuple[str, ...]) -> T:
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as exc:
        raise config_error(exc, kind, prefix=prefix) from exc


def _known(key: str, name: str, among: Info) -> None:
    if name not in among:
        hint = did_you_mean(name, among)
        raise ConfigError(f"{key}: {name!r} is not defined; {hint}known here: {', '.join(among)}")


def _files() -> dict[str, Path]:
    return definitions.found("studies")
