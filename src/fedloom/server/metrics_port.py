"""The port of a server's metrics; Prometheus's package is imported only if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedloom.core.errors import UsageError
from fedloom.core.extras import needed_by

if TYPE_CHECKING:
    from fedloom.server.metrics import Exposed, PrometheusSink


def metrics_sink() -> PrometheusSink:
    """Return a sink that counts events.

    Raises:
        PackageMissing: Prometheus's client is not installed.
    """
    with needed_by("--metrics-port"):
        from fedloom.server.metrics import PrometheusSink

    return PrometheusSink()


def open_metrics_port(metrics: PrometheusSink, host: str, port: int) -> Exposed:
    """Serve metrics at an address.

    Raises:
        UsageError: the port is taken.
    """
    from fedloom.server.metrics import expose

    try:
        return expose(metrics, host, port)
    except OSError as exc:
        raise UsageError(
            f"cannot serve metrics on {host}:{port}: {exc.strerror}. Choose another --metrics-port"
        ) from exc
