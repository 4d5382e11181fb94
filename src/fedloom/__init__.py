"""fedloom: write a federated experiment once, run it in one process, on a Ray cluster, or on enrolled devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedloom.api import RunResult, load, resume, run
    from fedloom.core.config import Experiment
    from fedloom.erasure.forget import forget

__version__ = "0.1.0"
__all__ = ["Experiment", "RunResult", "forget", "load", "resume", "run"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `import fedloom` itself costs nothing."""
    if name == "Experiment":
        from fedloom.core.config import Experiment

        return Experiment
    if name == "forget":
        from fedloom.erasure.forget import forget

        return forget
    if name in __all__:
        from fedloom import api

        return getattr(api, name)
    raise AttributeError(f"module 'fedloom' has no attribute {name!r}")
