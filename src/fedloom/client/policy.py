"""A node's own policy: what its owner allows servers to do, in the node's `policy.toml`; enforced by its agent.

Anything not allowed here is refused, whatever a server sends: names outside the lists are refused before anything
is imported, and a workload reads only paths below the folder its owner gave it.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import resource
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from fedloom.client.approval import Approval, Approver
from fedloom.client.data_view import DataView, file_ids, handles_folder
from fedloom.client.filters import Filters
from fedloom.client.node_code import NodeCode
from fedloom.client.owner_commands import ask
from fedloom.client.usage import Usage
from fedloom.client.withholding import Withhold
from fedloom.core.accumulators import BUILTIN
from fedloom.core.code_names import CodeName
from fedloom.core.config import PluginSettings, Settings, plugin_schema
from fedloom.core.errors import ConfigError, PolicyRefused
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.messages import Group, GroupKey, RunSpec
from fedloom.core.records import Info, JsonObject
from fedloom.core.registry import PartRef, is_path
from fedloom.core.setting_types import (
    DATA,
    SettingKind,
    TextSetting,
    default_columns,
    module_file,
    offence,
    text_settings,
)
from fedloom.core.toml_files import read_toml

_AGAIN_S = 900.0
"""Upper limit of the seconds a server has to wait before a retry."""

Window = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")]


class WorkloadPolicy(Settings):
    """Permissions of one allowed workload."""

    data: Path | None = None
    """Folder that `$DATA` stands for. Without one the workload reads no file named by a server."""

    @pydantic.field_validator("data")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.absolute()

    columns: tuple[str, ...] | None = None
    """Columns of tables (and arrays of archives) that may be read; None for those the workload reads by default, such
    as `text` and `label`."""
    classes: tuple[str, ...] = ()
    """Names of classes that may be disclosed; of other classes a digest is."""
    evaluation: bool = True
    """Whether models may be evaluated on the node's validation data, which discloses their metrics there."""
    submitters: tuple[str, ...] | None = None
    """Names of members whose runs of this workload the node accepts; None for all that the policy accepts."""
    roles: tuple[Literal["user", "admin"], ...] | None = None
    """Roles of members whose runs of this workload the node accepts; None for all that the policy accepts."""


class Limits(Settings):
    """Limits of the machine's resources for the agent."""

    memory_mb: Annotated[int, Field(ge=256)] | None = None
    """Memory the process may allocate, 10^6 bytes; None for no limit."""
    parked_mb: Annotated[int, Field(ge=0)] = 8000
    """Memory for parked updates, all runs together, 10^6 bytes; one that was dropped is trained
    again."""
    inputs_mb: Annotated[int, Field(ge=0)] = 4000
    """Memory for the inputs of the runs' current exchanges, and as much again for pinned ones, 10^6 bytes; one that was
    dropped is fetched again."""
    helpers: Annotated[int, Field(ge=0)] = 0
    """Processes that workloads may have besides the agent's own, all runs together."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of the process's numerical libraries. A harder bound on cores is the system's to set."""
    bytes_per_day: Annotated[int, Field(ge=1)] | None = None
    """Bytes to and from the server in one day of the node's clock; None for no limit."""
    hours: tuple[Window, ...] = ()
    """When the node works, local time, such as `22:00-06:00`; empty: always."""
    hook: tuple[str, ...] = ()
    """A command that checks whether the node may work now (battery, metered link): exit status 0 for yes; otherwise the
    first line it prints is the reason."""
    hook_timeout_s: Annotated[float, Field(gt=0.0)] = 10.0
    """Seconds after which a hook without an exit counts as a no."""
    hook_every_s: Annotated[float, Field(gt=0.0)] = 60.0
    """Seconds for which the hook's result is cached."""
    min_examples: Annotated[int, Field(ge=0)] = 0
    """Examples a client must have for work on them to be done; 0 for no floor."""
    min_cohort: Annotated[int, Field(ge=0)] = 0
    """Clients a round of the run must ask for, by its experiment; 0 for no floor. Where clients are sites: the sites
    that `round.min_sites` or the list of `clients` requires."""
    alone: bool = True
    """Whether the node takes part in exchanges in which, as the server states, no other client does, so that the sum is
    its own update. Making the initial model and describing the data are excepted."""
    runs_per_day: Annotated[int, Field(ge=1)] | None = None
    """Runs that work is done for in one day of the node's clock; None for no limit."""
    rounds_per_day: Annotated[int, Field(ge=1)] | None = None
    """Rounds, all runs together, that work is done for in one day; None for no limit."""


class Policy(Settings):
    """A node's policy. The empty one allows nothing."""

    workloads: dict[str, WorkloadPolicy] = Field(default_factory=dict)
    """Workloads the node runs, by name."""
    code: tuple[str, ...] = ()
    """Modules, files and folders, besides what is installed with fedloom or its plug-ins, that experiments may use as
    strategies, selections, monitors, Flower apps or a workload's classifier. A folder stands for what is in it, too; an
    entry `PATH#sha256=HEX` allows a file or folder of that content alone."""
    submitters: tuple[str, ...] | None = None
    """Names of members whose runs the node accepts; None for every member that `roles` allows."""
    roles: tuple[Literal["user", "admin"], ...] | None = None
    """Roles of members whose runs the node accepts; None for all."""
    filters: Filters = Filters()
    """What is done to each update before it leaves."""
    withhold: Withhold = Withhold()
    """Optional parts of what leaves that stay here."""
    approval: Approval = Approval()
    """A command that approves runs."""
    tracebacks: bool = False
    """Whether a failure's message and traceback may be sent. They may quote data."""
    share_local_model: bool = False
    """Whether a model trained on this node's data alone may be evaluated at other sites."""
    limits: Limits = Limits()

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a file; a missing one is the empty policy.

        Raises:
            ConfigError: the file is not a policy.
        """
        try:
            return cls.model_validate(read_toml(path))
        except FileNotFoundError:
            return cls()
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: cannot be read as a policy: {exc}") from exc
        except pydantic.ValidationError as exc:
            reported = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in exc.errors()
            )
            raise ConfigError(f"{path}: {reported}") from exc


class Guard:
    """Enforces a policy.

    Args:
        policy: the permissions.
        usage: today's traffic.
        now: the node's clock, local time.
        private: folders and files that are never data: the node's identity, its policy.
        views: folder for the runs' views of the data (`client.data_view`); None gives runs the paths themselves.
    """

    def __init__(
        self,
        policy: Policy,
        usage: Usage,
        now: Callable[[], datetime] = datetime.now,
        *,
        private: Sequence[Path] = (),
        views: Path | None = None,
    ) -> None:
        self.policy, self._usage, self._now, self._views = policy, usage, now, views
        self._numbers = itertools.count()
        self._private = [path.resolve() for path in private]
        started_in = Path.cwd()
        self._code = NodeCode(policy.code, started_in)
        self._workload_files = {
            name: NodeCode([name], started_in) for name in policy.workloads if is_path(name) or CodeName.parse(name)
        }
        self._approver = Approver(policy.approval)
        self._hook_said: tuple[float, str] | None = None

    def open_view(self) -> DataView | None:
        """Return a new view for a run, which closes it; None if runs get the paths themselves."""
        if self._views is None or not handles_folder().is_dir():
            return None
        return DataView(self._views / str(next(self._numbers)), file_ids(self._private))

    def admit_run(self, spec: RunSpec, view: DataView | None = None) -> JsonObject:
        """Return a run's experiment with the node's own folders inserted; nothing it names has been imported.

        Args:
            spec: as the server announced it.
            view: as for `admit_experiment`.

        Raises:
            PolicyRefused: the policy is against the run or its submitter, or it is not approved.
        """
        workload = _name(spec.experiment.get("workload"), "workload")
        self.admit_submitter(spec.submitter_name, spec.submitter_role, workload)
        own = self.admit_experiment(spec.experiment, view)
        self._approver.admit(spec)
        return own

    def admit_experiment(self, experiment: Info, view: DataView | None = None) -> JsonObject:
        """Return the experiment with the node's own folders inserted; nothing it names has been imported.

        Args:
            experiment: as the server sent it.
            view: paths in it stand for those of the data; None inserts these.

        Raises:
            PolicyRefused: it names a workload, code or a path that is not allowed here.
        """
        for section, kind in SECTIONS.items():
            given = experiment.get(section)
            if kind is Kind.WORKLOAD or (given is None and not kind.required and kind.default is None):
                continue
            self._admit_part(PartRef(kind, _name(given, section), section))
        workload = _name(experiment.get("workload"), "workload")
        allowed = self.workload_policy(workload)
        if allowed is None:
            listed = ", ".join(sorted(name.rpartition("/")[2] for name in self.policy.workloads)) or "none"
            raise PolicyRefused(f"workload {workload[:200]!r} is not allowed here (allowed: {listed})", kind="workload")
        self._admit_cohort(experiment)
        self._admit_withheld(experiment)
        settings = experiment["workload"]
        table = {"name": settings} if isinstance(settings, str) else settings
        own = self._own_settings(workload, table, allowed)
        return {**experiment, "workload": own if view is None else _in_view(own, workload, allowed.data, view)}

    def workload_policy(self, name: str) -> WorkloadPolicy | None:
        """Return the permissions of a workload, by its name or by its file's name and SHA-256; None if it has none.

        Raises:
            PolicyRefused: a path came with the name.
        """
        code = CodeName.parse(name)
        if code is None:
            return None if is_path(name) else self.policy.workloads.get(name)
        for key, file in self._workload_files.items():
            if file.path_of(code.content) is not None:
                file.find(code, "workload")
                return self.policy.workloads[key]
        return None

    def admit_submitter(self, name: str, role: str, workload: str = "") -> None:
        """Check whether the node accepts runs of a member; the server names the submitter of a run.

        Args:
            name, role: of the submitter.
            workload: the run's; empty for any.

        Raises:
            PolicyRefused: it does not.
        """
        allowed = self.workload_policy(workload) if workload else None
        for each, what in ((self.policy, "runs"), (allowed, f"runs of workload {workload[:80]!r} by")):
            if each is None:
                continue
            if (each.roles is not None and role not in each.roles) or (
                each.submitters is not None and name not in each.submitters
            ):
                of = f"{what} {name[:80]!r}" if each is allowed else f"runs of {name[:80]!r}"
                raise PolicyRefused(f"{of} ({role[:20] or 'no role'}) are not done here", kind="submitter")

    def _admit_cohort(self, experiment: Info) -> None:
        """Refuse a run whose cohort is smaller than the policy's minimum."""
        floor, size = self.policy.limits.min_cohort, _stated_cohort(experiment)
        if size < floor:
            raise PolicyRefused(f"the run's cohort has {size} clients, expected at least {floor}", kind="data")

    def admit_evaluation(self, workload: str) -> None:
        """Check whether models may be evaluated on the node's validation data.

        Raises:
            PolicyRefused: they may not.
        """
        allowed = self.workload_policy(workload)
        if allowed is not None and not allowed.evaluation:
            raise PolicyRefused("the node's policy forbids evaluation of models on its data", kind="data")

    def _admit_withheld(self, experiment: Info) -> None:
        """Refuse a run that needs what the node withholds."""
        if not self.policy.withhold.any:
            return
        given = experiment.get("selection")
        name = _name(given, "selection") if given is not None else str(Kind.SELECTION.default)
        table = {**given, "name": name} if isinstance(given, Mapping) else {"name": name}
        needs = frozenset[str]()
        with contextlib.suppress(pydantic.ValidationError, ConfigError):  # said when the experiment is parsed
            needs = plugin_schema(Kind.SELECTION, name).model_validate(table).needs_of_clients()
        self.policy.withhold.admit(needs, name, experiment)

    def admit_examples(self, client: int, num_examples: int) -> None:
        """Check whether a client has enough examples for results on them to leave the node.

        Raises:
            PolicyRefused: it has fewer than the policy's minimum.
        """
        floor = self.policy.limits.min_examples
        if num_examples < floor:
            raise PolicyRefused(
                f"client {client} has fewer examples than the {floor} that the node's policy requires", kind="data"
            )

    def _own_settings(self, workload: str, table: Info, allowed: WorkloadPolicy) -> JsonObject:
        """Return the workload's settings with the node's paths inserted; code and other paths are refused."""
        own: JsonObject = copy.deepcopy(dict(table))
        apps = list[Path]()
        schema = plugin_schema(Kind.WORKLOAD, workload)
        settings = text_settings(schema, table)
        for setting in sorted(settings, key=lambda each: each.kind is not SettingKind.APP):
            if setting.steps != ("name",):
                text = self._own_text(setting, allowed.data, apps)
                _replace(own, setting.steps, text)
                apps += [Path(text)] if setting.kind is SettingKind.APP else []
        _admit_columns(schema, own, allowed)
        return own

    def _own_text(self, setting: TextSetting, data: Path | None, apps: Sequence[Path]) -> str:
        """Return a text of the workload's settings with the node's paths; `apps` are the folders of its Flower apps."""
        code = CodeName.parse(setting.value) if setting.kind in (SettingKind.APP, SettingKind.CODE) else None
        if code is not None:
            path = self._code.find(code, f"workload setting {setting.dotted}")
            return f"{path}:{code.attribute}" if code.attribute else str(path)
        found = offence(setting)
        if found == "empty":
            raise PolicyRefused(f"workload setting {setting.dotted} is an empty path; write {DATA}/…", kind="data")
        if found == "path":
            return self._path(setting, data)
        if found == "code" and not self._allows(setting, apps):
            raise PolicyRefused(
                f"workload setting {setting.dotted} = {setting.value[:80]!r} names code that the node's policy "
                "does not allow; its owner can list the module, file or folder under `code`. Files and folders are "
                "named by name and SHA-256, as `fedloom submit` sends them",
                kind="code",
            )
        return setting.value

    def _path(self, setting: TextSetting, data: Path | None) -> str:
        """Return a path below the data folder, and reject the node's own files."""
        path = _path(setting, data)
        if any(Path(path).is_relative_to(own) or own.is_relative_to(path) for own in self._private):
            raise PolicyRefused(
                f"workload setting {setting.dotted}: the node's identity, policy and state are no data", kind="data"
            )
        return path

    def _allows(self, setting: TextSetting, apps: Sequence[Path]) -> bool:
        """Return whether the policy lists the module of code, or an app's folder contains it."""
        module, colon, name = setting.value.rpartition(":")
        if setting.kind is SettingKind.APP or not (colon and name):
            return False
        return self._code.lists_module(module) or any(module_file(setting.value, app.resolve()) for app in apps)

    def admit_group(self, group: Group) -> None:
        """Check whether the group's plug-ins are allowed, and whether the node may work now.

        Raises:
            PolicyRefused: they are not, or it may not.
        """
        if group.accumulator not in BUILTIN:
            self._admit_part(PartRef(Kind.STRATEGY, group.accumulator, "accumulator"))
        for rule in group.rules:
            self._admit_part(PartRef(Kind.STRATEGY, rule, "rule"))
        if group.measure is not None:
            self._admit_part(PartRef(Kind.SELECTION, group.measure, "measure"))
            if self.policy.withhold.any:  # a server may name another measure than that of the run's selection
                self.policy.withhold.admit_measure(
                    plugin_schema(Kind.SELECTION, group.measure).measured_facts(), group.measure
                )
        self._admit_company(group)
        self._admit_day(group.key)
        self.admit_now(sum(ref.size for ref in (*group.inputs.values(), *group.states.values()) if not ref.inline))
        limits = self.policy.limits
        if limits.runs_per_day is not None or limits.rounds_per_day is not None:
            self._usage.begin(group.key.run_id, group.key.round)

    def _admit_company(self, group: Group) -> None:
        """Refuse an exchange with no other client, where the policy is against those."""
        kinds = {job.kind for job in group.jobs}
        if self.policy.limits.alone or kinds <= {"init", "describe"} or group.clients > len(group.jobs):
            return
        raise PolicyRefused(
            f"the server states {group.clients or 'no number of'} clients of this exchange, of which {len(group.jobs)} "
            "would be done here: the node takes part only with others (limits.alone)",
            kind="alone",
        )

    def _admit_day(self, key: GroupKey) -> None:
        """Refuse a run or a round that would be one too many today."""
        limits, usage = self.policy.limits, self._usage
        again_s = min(_AGAIN_S, usage.seconds_left())
        if limits.runs_per_day is not None and usage.runs_with(key.run_id) > limits.runs_per_day:
            text = f"the node has worked for {limits.runs_per_day} runs today, which is its limit"
            raise PolicyRefused(text, kind="runs", retry_s=again_s)
        if limits.rounds_per_day is not None and usage.rounds_with(key.run_id, key.round) > limits.rounds_per_day:
            text = f"the node has worked for {limits.rounds_per_day} rounds today, which is its limit"
            raise PolicyRefused(text, kind="rounds", retry_s=again_s)

    def admit_now(self, coming: int = 0) -> None:
        """Check whether the node may work now, with `coming` more bytes of traffic.

        Raises:
            PolicyRefused: it may not.
        """
        self._admit_bytes(coming)
        self._admit_hour()
        self._ask_hook()

    def _admit_part(self, ref: PartRef) -> None:
        """Refuse a part that is neither installed here nor allowed as code."""
        if (code := CodeName.parse(ref.name)) is not None:
            self._code.find(code, ref.part)
        elif not self._code.lists_module(ref.name) and not ref.installed:
            raise PolicyRefused(
                f"{ref.part} {ref.name[:80]!r} is neither installed here with fedloom or a plug-in, nor a module that "
                "the node's policy allows as code. Files are named by name and SHA-256, as `fedloom submit` sends them",
                kind="code",
            )

    def _admit_bytes(self, coming: int) -> None:
        limit = self.policy.limits.bytes_per_day
        if limit is not None and self._usage.today() + coming > limit:
            raise PolicyRefused(
                f"{coming} bytes more would exceed the day's {limit} ({self._usage.today()} so far)",
                kind="bytes",
                retry_s=min(_AGAIN_S, self._usage.seconds_left()),
            )

    def _admit_hour(self) -> None:
        hours = self.policy.limits.hours
        if hours and not any(_inside(self._now(), window) for window in hours):
            raise PolicyRefused(f"the node works only at {', '.join(hours)}", kind="hours", retry_s=60.0)

    def _ask_hook(self) -> None:
        limits = self.policy.limits
        if not limits.hook:
            return
        if self._hook_said is None or time.monotonic() - self._hook_said[0] > limits.hook_every_s:
            self._hook_said = time.monotonic(), ask(limits.hook, limits.hook_timeout_s)[1]
        if self._hook_said[1]:
            raise PolicyRefused(f"not now: {self._hook_said[1]}", kind="hook", retry_s=limits.hook_every_s)


def apply_limits(limits: Limits) -> None:
    """Apply the limits to this process, and disable data hubs; before the libraries concerned are loaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(limits.threads)
    if limits.memory_mb is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_mb * 10**6, limits.memory_mb * 10**6))


def _stated_cohort(experiment: Info) -> int:
    """Return how many clients a round of a run has at least, by its experiment."""
    cohort, clients, table = experiment.get("cohort"), experiment.get("clients"), experiment.get("round")
    if isinstance(cohort, int):
        return cohort
    if isinstance(clients, int):
        return clients
    sites = table.get("min_sites") if isinstance(table, Mapping) else None
    if isinstance(sites, int):
        return sites
    return len(clients) if isinstance(clients, list | tuple) else 1


def _name(section: object, what: str) -> str:
    name = section.get("name") if isinstance(section, Mapping) else section
    if not isinstance(name, str) or not name:
        raise PolicyRefused(f"the experiment names no {what}", kind="code")
    return name


def _admit_columns(schema: type[PluginSettings], own: Info, allowed: WorkloadPolicy) -> None:
    """Refuse columns that the policy does not name, those the workload reads by default included."""
    named = default_columns(schema) if allowed.columns is None else frozenset(allowed.columns)
    with contextlib.suppress(pydantic.ValidationError, ConfigError):  # said when the experiment is parsed
        own = schema.model_validate(own).model_dump(mode="json", by_alias=True, exclude_none=True)
    for setting in text_settings(schema, own):
        if setting.kind is SettingKind.COLUMN and setting.value not in named:
            listed = ", ".join(sorted(named)) or "none"
            raise PolicyRefused(
                f"workload setting {setting.dotted} = {setting.value[:80]!r} is no column that the node's policy names "
                f"(named: {listed}); its owner may add it to `columns`",
                kind="data",
            )


def _in_view(own: JsonObject, workload: str, data: Path | None, view: DataView) -> JsonObject:
    """Return the workload's settings with paths of a view instead of those below the data folder."""
    if data is None:
        return own
    root = data.resolve()
    for setting in list(text_settings(plugin_schema(Kind.WORKLOAD, workload), own)):
        is_path_below = setting.value.startswith("/") and Path(setting.value).is_relative_to(root)
        if setting.steps != ("name",) and is_path_below and offence(setting) == "path":
            inside = PurePosixPath(Path(setting.value).relative_to(root))
            _replace(own, setting.steps, view.path(root, inside))
    return own


def _path(setting: TextSetting, data: Path | None) -> str:
    """Return a path with `$DATA` replaced by the node's folder; any other one is refused."""
    try:
        return _resolved(setting.value, setting.dotted, data)
    except (ValueError, OSError, RuntimeError) as exc:  # half a character, a zero, a loop of links
        raise PolicyRefused(
            f"workload setting {setting.dotted} = {setting.value[:80]!r} cannot be a path: {type(exc).__name__}",
            kind="data",
        ) from exc


def _resolved(value: str, where: str, data: Path | None) -> str:
    if value == DATA or value.startswith(f"{DATA}/"):
        return _inside_data(value, data, where)
    if data is not None and value.startswith("/") and Path(value).resolve().is_relative_to(data.resolve()):
        return str(Path(value).resolve())
    raise PolicyRefused(
        f"workload setting {where} = {value[:80]!r} may be a path, but only paths below the node's data folder are "
        f"allowed: write it as {DATA} or {DATA}/… in the experiment",
        kind="data",
    )


def _replace(table: JsonObject, steps: Sequence[str | int], value: str) -> None:
    """Set the text at a place in nested tables and lists."""
    inner: Any = table
    for step in steps[:-1]:
        if isinstance(inner[step], tuple):
            inner[step] = list(inner[step])
        inner = inner[step]
    inner[steps[-1]] = value


def _inside_data(value: str, data: Path | None, where: str) -> str:
    if data is None:
        raise PolicyRefused(f"workload setting {where} uses {DATA}, but this node has no data folder", kind="data")
    root = data.resolve()
    if not root.is_dir():
        raise PolicyRefused(
            f"workload setting {where} uses {DATA}, but the folder for it does not exist now",
            kind="data",
            retry_s=_AGAIN_S,
        )
    path = (root / value.removeprefix(DATA).lstrip("/")).resolve()
    if not path.is_relative_to(root):
        raise PolicyRefused(f"workload setting {where} points outside the data folder", kind="data")
    return str(path)


def _inside(now: datetime, window: str) -> bool:
    begin, end = window.split("-")
    clock = f"{now:%H:%M}"
    return begin <= clock < end if begin <= end else clock >= begin or clock < end
