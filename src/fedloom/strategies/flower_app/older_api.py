"""A `ServerApp` of the API before messages: Flower's own server loop and proxies, over our grid.

Flower asks each client in a thread of its own. Here the instructions of a round go out as one exchange: a proxy is
called once to see the message it would send, and once more with the reply. All conversions are Flower's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from fedloom.core.errors import UnsupportedFeature
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import records
from fedloom.strategies.flower.messages import EVALUATE, TRAIN
from fedloom.strategies.flower_app.observed import Method, active, wrap
from fedloom.strategies.flower_app.session import AppGrid

Proxy: TypeAlias = Any
"""A `flwr.server.client_proxy.ClientProxy`."""
Instructions: TypeAlias = Sequence[tuple[Proxy, Any]]
"""Clients, and what each is to do."""
Results: TypeAlias = tuple[list[tuple[Proxy, Any]], list[Any]]
"""Clients with their results, and failures."""


class _Seen(BaseException):
    """Ends a proxy's call once its message is known."""


class _Capture(flwr.Grid):  # type: ignore[misc]  # flwr's classes are untyped here
    """A grid for one call of a proxy: notes its message, or answers with the reply to it."""

    def __init__(self, replies: Sequence[flwr.Message] | None = None) -> None:
        self.messages: list[flwr.Message] = []
        self._replies = replies

    def set_run(self, run: object) -> None:
        """Do nothing: it is of one call."""

    @property
    def run(self) -> object:
        raise UnsupportedFeature("a client's proxy has no run")

    def create_message(self, *args: object, **kwargs: object) -> flwr.Message:
        raise UnsupportedFeature("a client's proxy makes messages itself")

    def get_node_ids(self) -> Iterable[int]:
        return []

    def push_messages(self, messages: Iterable[flwr.Message]) -> Iterable[str]:
        raise UnsupportedFeature("a client's proxy sends one message and waits for the reply")

    pull_messages = push_messages

    def send_and_receive(
        self, messages: Iterable[flwr.Message], *, timeout: float | None = None
    ) -> Iterable[flwr.Message]:
        if self._replies is not None:
            return self._replies
        self.messages = list(messages)
        raise _Seen


def host_server() -> None:
    """Make Flower's server send a round's instructions at once, and record what it measures, when it has our grid."""
    server = flwr.older_server()
    functions = vars(server.module)
    functions["fit_clients"] = _together(functions["fit_clients"], _fit)
    functions["evaluate_clients"] = _together(functions["evaluate_clients"], _evaluate)
    wrap(server.manager, "wait_for", _wait_for)
    wrap(server.server, "fit", _fit_all)
    for name, record in _HISTORY.items():
        wrap(server.history, name, record)


def _together(original: Method, call: Callable[..., Any]) -> Method:
    if hasattr(original, "hosted"):
        return original

    def ask(
        client_instructions: Instructions, max_workers: int | None, timeout: float | None, group_id: int
    ) -> Results:
        instructions = list(client_instructions)
        grid = instructions[0][0].grid if instructions else None
        if not isinstance(grid, AppGrid):
            found: Results = original(client_instructions, max_workers, timeout, group_id)
            return found
        return _ask_all(grid, instructions, lambda proxy, ins: call(proxy, ins, timeout, group_id), timeout)

    return ask


def _fit(proxy: Proxy, ins: object, timeout: float | None, group_id: int) -> object:
    return proxy.fit(ins, timeout=timeout, group_id=group_id)


def _evaluate(proxy: Proxy, ins: object, timeout: float | None, group_id: int) -> object:
    return proxy.evaluate(ins, timeout=timeout, group_id=group_id)


def _ask_all(
    grid: AppGrid, instructions: Instructions, call: Callable[[Proxy, object], Any], timeout: float | None
) -> Results:
    """Send each client's message, all in one exchange; return results and failures in the clients' order."""
    messages = [_message(proxy, ins, call) for proxy, ins in instructions]
    replies: dict[str, list[flwr.Message]] = {}
    for reply in grid.send_and_receive(messages, timeout=timeout):
        replies.setdefault(reply.metadata.reply_to_message_id, []).append(reply)
    results: list[tuple[Proxy, Any]] = []
    failures: list[Any] = []
    for (proxy, ins), message in zip(instructions, messages, strict=True):
        proxy.grid = _Capture(replies.get(message.metadata.message_id, []))
        try:
            result = call(proxy, ins)
        except Exception as exc:  # the proxy raises for an error reply and for none
            failures.append(exc)
            continue
        finally:
            proxy.grid = grid
        done = result.status.code == flwr.older_server().ok
        (results if done else failures).append((proxy, result))
    return results, failures


def _message(proxy: Proxy, ins: object, call: Callable[[Proxy, object], Any]) -> flwr.Message:
    """Return the message a proxy would send."""
    grid, capture = proxy.grid, _Capture()
    proxy.grid = capture
    try:
        call(proxy, ins)
    except _Seen:
        pass
    finally:
        proxy.grid = grid
    (message,) = capture.messages
    return message


def _wait_for(original: Method) -> Method:
    def wait_for(self: object, num_clients: int, *args: object, **kwargs: object) -> object:
        session = active()
        if session is not None and num_clients > session.num_clients:
            raise UnsupportedFeature(
                f"the app waits for {num_clients} clients, this run has {session.num_clients}, and no more will come. "
                f"Lower its minimum (min_available_clients, min_fit_clients, min_evaluate_clients), or {session.more}"
            )
        return original(self, num_clients, *args, **kwargs)

    return wait_for


def _fit_all(original: Method) -> Method:
    """Record the server whose loop runs, for the model it has after each aggregation."""

    def fit(self: Any, *args: object, **kwargs: object) -> object:
        session = active()
        if session is None:
            return original(self, *args, **kwargs)
        session.server = self
        made = original(self, *args, **kwargs)
        _observe_model()
        return made

    return fit


def _observe_model() -> None:
    session = active()
    parameters = getattr(session.server, "parameters", None) if session is not None else None
    if session is not None and parameters is not None:
        session.model = records.from_array_record(flwr.older_server().to_arrays(parameters)) or session.model


def _adds(category: str, key: str | None) -> Callable[[Method], Method]:
    """Record what is added to a `History`: metrics of a category, or (with a key) one number; server's own for ''."""

    def made(original: Method) -> Method:
        def add(self: object, server_round: int, *args: Any, **kwargs: Any) -> object:
            session = active()
            if session is not None and server_round:
                _observe_model()
                (value,) = (*args, *kwargs.values())
                numbers = {key: float(value)} if key else records.scalars(value or {})
                measured = session.measured
                into = measured.aggregated.setdefault(category, {}) if category and numbers else measured.here
                if numbers:
                    into.update(numbers)
            return original(self, server_round, *args, **kwargs)

        return add

    return made


_HISTORY = {
    "add_loss_distributed": _adds(EVALUATE, "loss"),
    "add_metrics_distributed": _adds(EVALUATE, None),
    "add_metrics_distributed_fit": _adds(TRAIN, None),
    "add_loss_centralized": _adds("", "loss"),
    "add_metrics_centralized": _adds("", None),
}
