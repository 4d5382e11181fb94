"""A node's own policy: what its owner allows servers to do, in the node's `policy.toml`.

Anything not allowed here is refused, whatever a server sends (`client.guard`).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from fedloom.client.approval import Approval
from fedloom.client.filters import Filters
from fedloom.client.withholding import Withhold
from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.toml_files import read_toml

MAX_RETRY_S = 900.0
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
