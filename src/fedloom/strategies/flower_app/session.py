"""One run of a `main(grid, context)`: a thread that stops whenever the app waits for its clients.

Only one of the two threads ever runs: the platform's waits while the app computes, the app waits while its clients
work. In the app's turn the process's random generators are its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedloom.core.errors import FedloomError, RunFailed, UnsupportedFeature
from fedloom.core.records import Arrays, Update
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import records
from fedloom.strategies.flower.grid import ClientsGrid
from fedloom.strategies.flower.messages import EVALUATE, TRAIN, Batch, category, waves
from fedloom.strategies.flower.own_lines import own_line
from fedloom.strategies.flower.seeding import Streams
from fedloom.strategies.flower_app.journal import REPLIES, START, Entry, entry_updates, replies_entry
from fedloom.strategies.flower_app.measured import Measured
from fedloom.strategies.flower_app.observed import active, watching

CLIENTS = "clients"
"""Key of a journal's entry: the clients that there were when it was made."""
MORE_CLIENTS = "raise `clients`"
MORE_SITES = "set round.min_sites to the number, so that the run waits for them to join"


class _Closed(BaseException):
    """Raised inside an app's waiting call when no more replies will come. Not an `Exception`: apps catch those."""


@dataclass(frozen=True, slots=True)
class AppRun:
    """The run as an app sees it in `grid.run`."""

    run_id: int


class AppGrid(ClientsGrid):
    """The grid that `main` gets: messages sent are passed to the platform's loop.

    Pushed messages wait until the app waits: they are sent, in order, before the next messages that are sent and
    awaited, with the first pull, or when `main` has returned. Their replies stay until they are pulled.
    """

    def __init__(self, session: Session, clients: Sequence[int], run_id: int, more: str) -> None:
        super().__init__(clients, more)
        self.session = session
        self._run = AppRun(run_id)
        self._count = 0
        self._pushed: list[flwr.Message] = []
        self._arrived: dict[str, flwr.Message] = {}
        self._lock = threading.RLock()
        """The older API sends from several threads: one exchange at a time."""

    @property
    def clients(self) -> tuple[int, ...]:
        """Return the clients whose nodes there are, ascending."""
        return self._clients

    @clients.setter
    def clients(self, found: Iterable[int]) -> None:
        self._clients = tuple(sorted(found))

    @property
    def run(self) -> AppRun:
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Return node ids of all clients; only the app's own thread can be found waiting for more of them."""
        if active() is None:
            return [flwr.node_id(client) for client in self._clients]
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[flwr.Message]) -> Iterable[str]:
        named = self._named(messages)
        with self._lock:
            self._pushed += named
        self.exchanged()
        return [message.metadata.message_id for message in named]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[flwr.Message]:
        """Return replies to messages, each once. The first pull waits for the replies to all pushed messages."""
        with self._lock:
            self.flush()
            return [self._arrived.pop(each) for each in message_ids if each in self._arrived]

    def send_and_receive(
        self, messages: Iterable[flwr.Message], *, timeout: float | None = None
    ) -> Iterable[flwr.Message]:
        outgoing = self._named(messages)
        with self._lock:
            self.flush()
            return self._exchanged(outgoing, timeout)

    def flush(self) -> None:
        """Send what was pushed, and store the replies."""
        waiting, self._pushed = self._pushed, []
        for reply in self._exchanged(waiting):
            self._arrived[reply.metadata.reply_to_message_id] = reply

    def _named(self, messages: Iterable[flwr.Message]) -> list[flwr.Message]:
        named = list(messages)
        for message in named:
            self._count += 1
            flwr.set_message_id(message, f"message-{self._count}")
        return named

    def _exchanged(self, messages: Sequence[flwr.Message], timeout: float | None = None) -> list[flwr.Message]:
        """Send messages and wait for the replies; several messages to one node run one after another."""
        replies: list[flwr.Message] = []
        for batch in waves(messages, self._clients):
            replies += self.session.exchange(batch, timeout)
        return replies


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """Settings of a session: what it stores for a resume, and who decides about missing replies."""

    journal: bool = True
    """Whether replies are stored at all."""
    snapshots: bool = True
    """Whether `Strategy.start` stores its position in place of its replies."""
    of_sites: bool = False
    """Whether clients are sites, which come and go: the journal then has those of each exchange."""
    app_decides: bool = True
    """Whether errors and missing replies reach the app as error replies; otherwise the run's quorum decides."""


class Session:
    """A `ServerApp` under way.

    Attributes:
        batch: the messages the app waits for replies to; None when it has returned.
        deadline_s: the app's own timeout for that batch.
        journal: what it has received so far; entries never change, the list does.
        model: the newest global model seen.
        measured: numbers of the round's exchanges, as the app aggregated them or as means over the replies.
        running: whether `main` has not returned yet.
    """

    def __init__(
        self,
        app: flwr.ServerApp,
        folder: Path,
        clients: Sequence[int],
        run_config: Mapping[str, object],
        streams: Streams,
        journal: Sequence[Entry] = (),
        *,
        run_id: int = flwr.RUN,
        recording: Recording = Recording(),  # frozen
    ) -> None:
        self.batch: Batch | None = None
        self.deadline_s: float | None = None
        self.journal: list[Entry] = list(journal)
        self.recording = recording
        self.model: Arrays = {}
        self.measured = Measured()
        self.running = True
        self.server: object = None
        """Flower's server of the API before messages, once its loop runs."""
        self.in_start = False
        self.context = flwr.make_context(flwr.SERVER_NODE, {}, run_config, flwr.RecordDict(), run_id)
        self._app, self._streams, self._folder = app, streams, folder
        self._grid = AppGrid(self, clients, run_id, MORE_SITES if recording.of_sites else MORE_CLIENTS)
        self._cursor = 0
        self._answer: Sequence[tuple[int, Update]] = ()
        self._error: BaseException | None = None
        self._closing = False
        self._apps_turn, self._our_turn = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, name="flower-serverapp", daemon=True)

    @property
    def num_clients(self) -> int:
        """Return the number of clients the app has now."""
        return len(self._grid.clients)

    @property
    def more(self) -> str:
        """Return how a run gets more clients."""
        return MORE_SITES if self.recording.of_sites else MORE_CLIENTS

    def meet(self, clients: Sequence[int]) -> None:
        """Set the clients that there are from the app's next turn on."""
        self._grid.clients = clients

    def begin(self) -> None:
        """Run the app until it first waits for a reply that the journal does not have."""
        self._thread.start()
        self._run()

    def answer(self, updates: Sequence[tuple[int, Update]]) -> None:
        """Pass the replies to `batch` to the app, and run it until it waits again or returns."""
        self._answer = updates
        self._run()

    def close(self) -> None:
        """End the app in its waiting call, so that its `finally` blocks run."""
        if self._thread.is_alive():
            self._closing = True
            self._run(raising=False)

    def exchange(self, batch: Batch, timeout: float | None = None) -> list[flwr.Message]:
        """Send a batch, wait, return the replies; called by the app's thread."""
        updates = self._recorded() if self._cursor < len(self.journal) else self._ask(batch, timeout)
        self._grid.exchanged()
        if not self.in_start:
            self._observe(batch)
        self.measured.replies(batch, updates)
        if self.recording.app_decides:
            self.measured.errors += len(batch.messages) - len(updates)
        return batch.replies(updates, app_decides=self.recording.app_decides)

    def recorded_start(self) -> Entry | None:
        """Return the recorded position of an earlier run of `main`, if any; called by the app's thread in `start`."""
        if self._cursor < len(self.journal) and self.journal[self._cursor].kind == START:
            self._cursor += 1
            entry = self.journal[self._cursor - 1]
            self._grid.clients = entry.tree.get(CLIENTS, self._grid.clients)
            return entry
        return None

    def snapshot(self, entry: Entry, place: int | None) -> int:
        """Record the position of `start`, called by the app's thread; earlier entries are not needed again.

        Returns:
            The entry's place in the journal, to be passed with the next snapshot of the same `start`.
        """
        place = len(self.journal) if place is None else place
        self.journal[place:] = [self._with_clients(entry)]
        self._cursor = len(self.journal)
        return place

    @property
    def position(self) -> int:
        """Place in the journal of the entry consumed last."""
        return self._cursor - 1

    def _recorded(self) -> list[tuple[int, Update]]:
        entry = self.journal[self._cursor]
        if entry.kind != REPLIES:
            raise UnsupportedFeature(
                "the app behaved differently when its main was run again for the resume; it "
                'depends on something besides its arguments and its seeded generators. Use resume = "none"'
            )
        self._cursor += 1
        self._grid.clients = entry.tree.get(CLIENTS, self._grid.clients)
        return entry_updates(entry)

    def _with_clients(self, entry: Entry) -> Entry:
        """Return an entry that has the clients of its time, if those may be others later."""
        if not self.recording.of_sites:
            return entry
        return replace(entry, tree={**entry.tree, CLIENTS: list(self._grid.clients)})

    def _ask(self, batch: Batch, timeout: float | None) -> Sequence[tuple[int, Update]]:
        self.batch, self.deadline_s = batch, timeout
        self._our_turn.release()
        self._apps_turn.acquire()
        self.batch = None
        if self._closing:
            raise _Closed
        if self.recording.journal:
            self.journal.append(self._with_clients(replies_entry(self._answer)))
            self._cursor = len(self.journal)
        return self._answer

    def stop_snapshots(self) -> None:
        """Store replies from now on: something in the app's strategy cannot be saved."""
        self.recording = replace(self.recording, snapshots=False)

    def _observe(self, batch: Batch) -> None:
        """Record the model that an app with a loop of its own sends."""
        if not batch.kinds & {TRAIN, EVALUATE}:
            return
        for message in batch.messages.values():
            if category(message.metadata.message_type) in (TRAIN, EVALUATE):
                for record in message.content.array_records.values():
                    if arrays := records.from_array_record(record):
                        self.model = arrays
                        return

    def _run(self, *, raising: bool = True) -> None:
        with self._streams.switched_in(), flwr.quiet():
            self._apps_turn.release()
            self._our_turn.acquire()
        error, self._error = self._error, None
        if error is None or not raising:
            return
        if isinstance(error, FedloomError):
            raise error
        where = own_line(error, self._folder)
        raise RunFailed(f"{where}the Flower ServerApp's main raised {type(error).__name__}: {error}") from error

    def _main(self) -> None:
        self._apps_turn.acquire()
        try:
            if not self._closing:
                with watching(self):
                    self._app(self._grid, self.context)
                    self._grid.flush()
        except _Closed:
            pass
        except BaseException as exc:
            self._error = exc
        finally:
            self.batch, self.running = None, False
            self._our_turn.release()
