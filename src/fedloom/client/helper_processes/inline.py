"""Helpers of a workload in the process it runs in, without another process."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable

from fedloom.client.helper_processes.factory import ONE_CORE, FactoryRef
from fedloom.core.errors import ClientFailed
from fedloom.core.protocols import HelperHandle, Resources


class InlineHelpers:
    """Makes helpers in this process; arguments and results are copied all the same."""

    def start(
        self, factory: Callable[..., object], *arguments: object, resources: Resources = ONE_CORE
    ) -> HelperHandle:
        """Make a helper; `resources` mean nothing here."""
        return _InlineHelper(FactoryRef.of(factory), arguments)


class _InlineHelper:
    def __init__(self, factory: FactoryRef, arguments: tuple[object, ...]) -> None:
        self._name = factory.name
        self._helper: object | None = self._run(factory.load(), arguments)

    def call(self, method: str, *arguments: object) -> object:
        if self._helper is None:
            raise ClientFailed(f"helper {self._name} was stopped")
        return self._run(getattr(self._helper, method, None), arguments, method)

    def stop(self) -> None:
        self._helper = None

    def _run(self, work: Callable[..., object] | None, arguments: tuple[object, ...], method: str = "") -> object:
        try:
            if work is None:
                raise AttributeError(f"the helper has no method {method!r}")
            return copy.deepcopy(work(*copy.deepcopy(arguments)))
        except Exception as exc:
            raise ClientFailed(f"helper {self._name}:\n{traceback.format_exc()}") from exc
