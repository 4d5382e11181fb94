"""The error catalogue: every failure a person can meet, with its exit code and its status on the wire.

    FedloomError
    ├── UsageError            wrong input: configuration, target, missing data           exit 2
    │   ├── ConfigError
    │   ├── UnknownName
    │   ├── DataMissing
    │   │   └── DataDiffers
    │   ├── RunExists
    │   ├── PluginInvalid
    │   ├── PackageMissing
    │   └── UnsupportedFeature
    ├── RunFailed             the run itself failed and can be looked into or resumed    exit 1
    │   ├── ClientFailed
    │   ├── BadUpdate
    │   ├── QuorumNotReached
    │   ├── NoCapacity
    │   ├── CheckpointCorrupt
    │   ├── StorageFull
    │   ├── PolicyRefused
    │   └── ServerUnreachable
    ├── PeerError             a message from the other side that cannot be honoured      exit 1
    │   ├── BadFrame
    │   ├── BadMessage
    │   ├── LimitExceeded
    │   ├── NotFound
    │   ├── Unauthenticated
    │   └── Forbidden
    └── Interrupted           stopped by the user; resumable                             exit 130

A message says what was expected, what was found, where, and what to do. `public` is the sentence sent
to callers who may not see the details.
"""

from __future__ import annotations

from typing import ClassVar


class FedloomError(Exception):
    """Root of every error this package raises on purpose."""

    exit_code: ClassVar[int] = 1
    """Process exit code of the command line."""
    status: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status the server answers with."""
    public: ClassVar[str | None] = "The server met an internal error; its log has the details."
    """Message for the other side; None sends the error's own message."""

    def public_message(self) -> str:
        """Return the sentence that may leave this machine."""
        return str(self) if self.public is None else self.public


class UsageError(FedloomError):
    """The input is wrong; nothing was started or changed."""

    exit_code = 2
    status = "INVALID_ARGUMENT"
    public = None


class ConfigError(UsageError):
    """A setting of an experiment is unknown, of the wrong type, or out of range."""


class UnknownName(UsageError):
    """No strategy, workload, selection, monitor or preset has this name."""

    status = "NOT_FOUND"


class DataMissing(UsageError):
    """The data an experiment names is not on this machine."""

    status = "FAILED_PRECONDITION"


class DataDiffers(DataMissing):
    """A node's data is not numbered, shaped or normalised as the run's.

    Args:
        message: how they differ.
        public: what may leave the node in any case: what to set, without anything of the data.
    """

    def __init__(self, message: str, public: str = "") -> None:
        super().__init__(message)
        self._public = public or message

    def public_message(self) -> str:
        return self._public


class RunExists(UsageError):
    """A run already lives in the folder; runs are never overwritten."""

    status = "ALREADY_EXISTS"


class PluginInvalid(UsageError):
    """A plug-in does not fit its interface; the message names file, line, what was found and what was expected."""


class PackageMissing(UsageError):
    """An optional package is not installed; the message has the command that installs it."""

    status = "FAILED_PRECONDITION"


class UnsupportedFeature(UsageError):
    """A combination or a feature of a foreign app that cannot be honoured; the message names it."""

    status = "UNIMPLEMENTED"


class RunFailed(FedloomError):
    """A run started and could not continue. Its checkpoints are intact."""

    status = "ABORTED"
    public = None


class ClientFailed(RunFailed):
    """A client's work raised; the message names client, round and stage and ends with its traceback."""


class BadUpdate(RunFailed):
    """An update does not fit the experiment: wrong names, shapes, dtypes, or not finite."""


class QuorumNotReached(RunFailed):
    """Fewer updates arrived than the round's quorum."""


class NoCapacity(RunFailed):
    """No agent is available; the message names the resource and what is using it."""

    status = "RESOURCE_EXHAUSTED"


class CheckpointCorrupt(RunFailed):
    """A checkpoint on disk fails its checksum and no older one is left."""

    status = "DATA_LOSS"


class StorageFull(RunFailed):
    """The disk holding the run is full; the last complete checkpoint is untouched."""

    status = "RESOURCE_EXHAUSTED"


class PolicyRefused(RunFailed):
    """A node's policy does not allow the request."""

    status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, kind: str = "", retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.retry_s = kind, retry_s


class ServerUnreachable(RunFailed):
    """No server responds at the address."""

    status = "UNAVAILABLE"


class PeerError(FedloomError):
    """The other side sent something that cannot be honoured. Nothing was changed."""

    status = "INVALID_ARGUMENT"
    public = None


class BadFrame(PeerError):
    """Bytes that are not a well-formed payload frame."""


class BadMessage(PeerError):
    """A control message that is malformed, out of order, or speaks another protocol version."""


class LimitExceeded(PeerError):
    """A message or payload exceeds its size limit, or a count exceeds its limit."""

    status = "RESOURCE_EXHAUSTED"


class NotFound(PeerError):
    """The run, node or payload named does not exist here."""

    status = "NOT_FOUND"


class Unauthenticated(PeerError):
    """The caller shows no token or certificate, or one that is wrong, expired or revoked."""

    status = "UNAUTHENTICATED"


class Forbidden(PeerError):
    """The caller is known, but the call is not for its role, or not in its name."""

    status = "PERMISSION_DENIED"


class Interrupted(FedloomError):
    """The user stopped the run; it can be resumed from its last round."""

    exit_code = 130
    status = "CANCELLED"
    public = None


def catalogue() -> tuple[type[FedloomError], ...]:
    """Return every error class of this module, root first; methods and plug-ins may have more specific ones."""

    def below(kind: type[FedloomError]) -> list[type[FedloomError]]:
        return [
            kind,
            *(each for child in kind.__subclasses__() if child.__module__ == __name__ for each in below(child)),
        ]

    return tuple(below(FedloomError))
