"""Prepares payloads for the nodes that will read them: copies or hashes them without the coordinator's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from fedloom.core.errors import FedloomError, RunFailed
from fedloom.server.fleet.open_exchange import OpenExchange
from fedloom.server.fleet.payloads import Offer, PayloadStore

PREPARING = 2
"""Limit of exchanges whose payloads threads prepare at the same time; each also prepares some when it opens."""
Prepared = Callable[[OpenExchange, str, FedloomError | None], None]
"""Called with an exchange, a locality, and the error if what a group reads could not be prepared."""


class Preparation:
    """Prepares offers, in the caller's thread or in background threads. Thread-safe.

    Args:
        payloads: where the offers are.
        prepared: called in a background thread when the offers passed to `soon` are ready.
    """

    def __init__(self, payloads: PayloadStore, prepared: Prepared) -> None:
        self._payloads, self._prepared = payloads, prepared
        self._threads = ThreadPoolExecutor(PREPARING, thread_name_prefix="fedloom-payloads")
        self._lock = threading.Lock()
        self._closed = False

    def prepare_inputs(self, opened: OpenExchange, localities: Collection[str]) -> None:
        """Prepare what every group of an exchange reads; other payloads are prepared when a group needs them."""
        for offer in opened.inputs.values():
            self._payloads.prepare(offer, localities)

    def soon(self, opened: OpenExchange, offers: Sequence[Offer], locality: str) -> None:
        """Prepare offers that a group waits for, in a background thread; returns at once."""
        with self._lock:
            if not self._closed:
                self._threads.submit(self._prepare, opened, offers, locality)

    def close(self) -> None:
        """Prepare no more, and wait for what is being prepared."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(cancel_futures=True)

    def _prepare(self, opened: OpenExchange, offers: Sequence[Offer], locality: str) -> None:
        trouble: FedloomError | None = None
        try:
            for offer in offers:
                self._payloads.prepare(offer, (locality,))
        except FedloomError as exc:
            trouble = exc
        except Exception as exc:  # nothing waits for this thread's own result
            trouble = RunFailed(f"a group's inputs could not be prepared: {type(exc).__name__}: {exc}")
        self._prepared(opened, locality, trouble)
