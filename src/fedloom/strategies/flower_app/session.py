"""One run of a `main(grid, context)`: a thread that stops whenever the app waits for its clients.

Only one of the two threads ever runs: the platform's waits while the app computes, the app waits while its clients
work. In the app's turn the process's random generators are its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from fedloom.core.errors import FedloomError, RunFailed, UnsupportedFeature
from fedloom.core.records import Arrays, Update
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import records
from fedloom.strategies.flower.grid import ClientsGrid
from fedloom.strategies.flower.messages import Batch
from fedloom.strategies.flower.seeding import Streams
from fedloom.strategies.flower_app.journal import REPLIES, START, Entry, entry_updates, mean_of, replies_entry


class _Closed(BaseException):
    """Raised inside an app's waiting call when no more replies will come. Not an `Exception`: apps catch those."""


class AppGrid(ClientsGrid):
    """The grid `main` gets: sending is handing over to the platform's loop."""

    def __init__(self, session: Session, clients: Sequence[int]) -> None:
        super().__init__(clients)
        self.session = session
        self._count = 0
        self._pushed: dict[str, flwr.Message] = {}
        self._arrived: dict[str, flwr.Message] = {}

    def push_messages(self, messages: Iterable[flwr.Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._count += 1
            flwr.set_message_id(message, f"message-{self._count}")
            self._pushed[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        self.exchanged()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[flwr.Message]:
        """Return replies to messages, each once. The first pull waits for the replies to all pushed messages."""
        if self._pushed:
            waiting, self._pushed = list(self._pushed.values()), {}
            for reply in self.session.exchange(Batch(waiting, self._clients)):
                self._arrived[reply.metadata.reply_to_message_id] = reply
        return [self._arrived.pop(each) for each in message_ids if each in self._arrived]

    def send_and_receive(
        self, messages: Iterable[flwr.Message], *, timeout: float | None = None
    ) -> Iterable[flwr.Message]:
        outgoing = list(messages)
        self.push_messages(outgoing)
        for message in outgoing:
            del self._pushed[message.metadata.message_id]
        if not outgoing:
            return []
        return self.session.exchange(Batch(outgoing, self._clients), timeout)


class Session:
    """A `ServerApp` under way.

    Attributes:
        batch: the messages the app waits for replies to; None when it has returned.
        deadline_s: the app's own timeout for that batch.
        journal: what it has received so far; entries never change, the list does.
        model: the newest global model seen.
        report: numbers of the newest training step; `evaluation`: of the newest evaluation, None without one.
    """

    def __init__(
        self,
        app: flwr.ServerApp,
        clients: Sequence[int],
        run_config: Mapping[str, object],
        streams: Streams,
        journal: Sequence[Entry] = (),
        *,
        keeps: bool = True,
        snapshots: bool = True,
    ) -> None:
        self.batch: Batch | None = None
        self.deadline_s: float | None = None
        self.journal: list[Entry] = list(journal)
        self.keeps, self.snapshots = keeps, snapshots
        self.model: Arrays = {}
        self.report: dict[str, float] = {}
        self.evaluation: dict[str, float] | None = None
        self.in_start = False
        self.context = flwr.make_context(flwr.SERVER_NODE, {}, run_config, flwr.RecordDict())
        self._app, self._streams = app, streams
        self._grid = AppGrid(self, clients)
        self._cursor = 0
        self._answer: Sequence[tuple[int, Update]] = ()
        self._error: BaseException | None = None
        self._closing = False
        self._apps_turn, self._our_turn = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, name="flower-serverapp", daemon=True)

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
        """Called by the app's thread: send a batch, wait, return the replies."""
        updates = self._recorded() if self._cursor < len(self.journal) else self._ask(batch, timeout)
        self._grid.exchanged()
        if not self.in_start:
            self._observe(batch, updates)
        return batch.replies(updates)

    def recorded_start(self) -> Entry | None:
        """Return the recorded position of an earlier run of `main`, if any; called by the app's thread in `start`."""
        if self._cursor < len(self.journal) and self.journal[self._cursor].kind == START:
            self._cursor += 1
            return self.journal[self._cursor - 1]
        return None

    def snapshot(self, entry: Entry, place: int | None) -> int:
        """Record the position of `start`, called by the app's thread; earlier entries are not needed again.

        Returns:
            The entry's place in the journal, to be passed with the next snapshot of the same `start`.
        """
        place = len(self.journal) if place is None else place
        self.journal[place:] = [entry]
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
        return entry_updates(entry)

    def _ask(self, batch: Batch, timeout: float | None) -> Sequence[tuple[int, Update]]:
        self.batch, self.deadline_s = batch, timeout
        self._our_turn.release()
        self._apps_turn.acquire()
        self.batch = None
        if self._closing:
            raise _Closed
        if self.keeps:
            self.journal.append(replies_entry(self._answer))
            self._cursor = len(self.journal)
        return self._answer

    def _observe(self, batch: Batch, updates: Sequence[tuple[int, Update]]) -> None:
        """Record what an app with its own loop shows: the model it sends, the metrics it receives."""
        first = next(iter(batch.messages.values()))
        for record in first.content.array_records.values():
            self.model = records.from_array_record(record)
            break
        if "evaluate" in batch.kinds:
            self.evaluation = dict(mean_of(updates)) or None
        elif "train" in batch.kinds:
            self.report = dict(mean_of(updates))

    def _run(self, *, raising: bool = True) -> None:
        with self._streams.switched_in(), flwr.quiet():
            self._apps_turn.release()
            self._our_turn.acquire()
        error, self._error = self._error, None
        if error is None or not raising:
            return
        if isinstance(error, FedloomError):
            raise error
        raise RunFailed(f"the Flower ServerApp's main raised {type(error).__name__}: {error}") from error

    def _main(self) -> None:
        self._apps_turn.acquire()
        try:
            if not self._closing:
                self._app(self._grid, self.context)
        except _Closed:
            pass
        except BaseException as exc:
            self._error = exc
        finally:
            self.batch = None
            self._our_turn.release()
