"""Frames on the server: broadcasts offered to agents, and uploads coming in.

A broadcast is one record, whatever the number of clients that read it. How it reaches an agent (in this process,
through the host's memory, inside the message, or streamed by digest) is decided when the agent is given a reference,
and the work for each way is done once.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fedloom.core import frames
from fedloom.core.depot import Buffer, Depot
from fedloom.core.errors import BadFrame, BadMessage, LimitExceeded, NotFound, ServerUnreachable
from fedloom.core.layout import Layout
from fedloom.core.messages import PayloadRef
from fedloom.core.pinned import Pinned
from fedloom.core.records import Record

CHUNK_BYTES = 1 << 20
"""Bytes in one raw chunk of a download or upload: the fastest size over gRPC."""
INLINE_BYTES = 128 << 10
"""Frames up to this size travel inside the message instead of a transfer of their own."""
LOCAL_INLINE_BYTES = 8 << 10
"""The same for agents on this host, where the alternative is cheaper."""


@dataclass
class Offer:
    """A broadcast in one of its exchanges (in all of them, where it is pinned): the record and its forms so far."""

    record: Record
    layout: Layout
    buffer: Buffer | None = None
    sha256: str = ""
    inline: bytes = b""
    told: set[str] = field(default_factory=set)
    """Sessions on this host that have had a reference to it; the payload counts once for each."""

    @property
    def size(self) -> int:
        """Bytes of the frame."""
        return self.layout.size

    @property
    def pinned(self) -> bool:
        """Whether the record never changes, so that the offer outlives its exchange."""
        return isinstance(self.record, Pinned)


@dataclass
class _Upload:
    data: bytearray | mmap.mmap
    """Room for the frame; it takes memory only where bytes have come."""
    received: int = 0
    complete: bool = False
    uses: int = 1
    """Results that will name it: equal frames are sent once."""
    stream: int = 0
    """Counts its callers; whoever asks for the offset takes the upload over from a stream that broke."""


class PayloadStore:
    """All frames the server has out or is taking in. Thread-safe.

    Args:
        depot: shared memory for agents on this host; None where there are none.
        max_payload_bytes: the largest frame taken from an agent.
    """

    def __init__(self, depot: Depot | None, *, max_payload_bytes: int = 16 << 30) -> None:
        self._depot = depot
        self._max_payload_bytes = max_payload_bytes
        self._lock = threading.Lock()
        self._by_digest: dict[str, list[Offer]] = {}
        self._pinned: dict[str, dict[str, Offer]] = {}
        """Pinned records on offer by digest, for each run."""
        self._uploads: dict[tuple[str, str], _Upload] = {}

    @property
    def max_payload_bytes(self) -> int:
        """The largest frame taken from an agent."""
        return self._max_payload_bytes

    @property
    def depot(self) -> Depot | None:
        """Shared memory of this host, where the server has any."""
        return self._depot

    def offer(self, record: Record) -> Offer:
        """Make a record available; nothing is encoded yet."""
        sha256 = record.sha256 if isinstance(record, Pinned) else ""
        return Offer(record, Layout.of(record), sha256=sha256)

    def offer_all(self, run_id: str, records: Mapping[str, Record]) -> dict[str, Offer]:
        """Make an exchange's inputs available; pinned ones stay on offer until `retain` leaves them out."""
        pinned = self._pinned.setdefault(run_id, {})
        offers = {}
        for name, record in records.items():
            known = pinned.get(record.sha256) if isinstance(record, Pinned) else None
            offers[name] = known or self.offer(record)
            if isinstance(record, Pinned):
                pinned[record.sha256] = offers[name]
        return offers

    def retain(self, run_id: str, digests: Collection[str]) -> None:
        """Only these pinned records of a run are still wanted; the others are no longer on offer."""
        pinned = self._pinned.pop(run_id, {})
        for sha256 in pinned.keys() - set(digests):
            self._end(pinned.pop(sha256))
        if pinned:
            self._pinned[run_id] = pinned

    def ref(self, offer: Offer, locality: str) -> PayloadRef:
        """A reference for an agent that is `process`, `host` or `remote` to the server."""
        if locality == "process":
            return PayloadRef(size=offer.size, record=offer.record, sha256=offer.sha256, pinned=offer.pinned)
        limit = LOCAL_INLINE_BYTES if locality == "host" else INLINE_BYTES
        sha256 = offer.sha256 if offer.pinned else ""
        with self._lock:
            if offer.size <= limit and not offer.pinned:
                offer.inline = offer.inline or bytes(frames.encode(offer.record))
                return PayloadRef(size=offer.size, inline=offer.inline)
            if locality == "host" and self._depot is not None:
                if offer.buffer is None:
                    offer.buffer = self._depot.lease(offer.size)
                    frames.write_into(offer.record, offer.buffer.memory, offer.layout)
                    if isinstance(offer.record, Pinned):  # one copy on this host, the server's own included
                        offer.record.move(offer.layout.views(offer.buffer.memory.toreadonly()))
                return PayloadRef(size=offer.size, shared=offer.buffer.name, sha256=sha256, pinned=offer.pinned)
            if not offer.sha256:
                offer.sha256 = frames.digest(offer.record)
            equal = self._by_digest.setdefault(offer.sha256, [])
            if not any(other is offer for other in equal):
                equal.append(offer)
            return PayloadRef(size=offer.size, sha256=offer.sha256, pinned=offer.pinned)

    def withdraw(self, offer: Offer) -> None:
        """The exchange is over; memory of the offer may be reused, unless it is pinned."""
        if not offer.pinned:
            self._end(offer)

    def _end(self, offer: Offer) -> None:
        with self._lock:
            if offer.buffer is not None and self._depot is not None:
                give_back = self._depot.abandon if offer.pinned else self._depot.release
                give_back(offer.buffer.name)
            left = [other for other in self._by_digest.pop(offer.sha256, []) if other is not offer]
            if left:
                self._by_digest[offer.sha256] = left

    def download(self, sha256: str, offset: int) -> Iterator[bytes]:
        """The frame from `offset` on, in chunks; never holds more than one chunk beside the record itself.

        Raises:
            NotFound: no such payload is on offer (any more).
            BadMessage: the offset lies behind the frame's end.
        """
        with self._lock:
            offer = next(iter(self._by_digest.get(sha256, [])), None)
        if offer is None:
            raise NotFound(f"no payload with digest {sha256[:16]!r} is on offer; its round may be over")
        if offset > offer.size:
            raise BadMessage(f"download: offset {offset} lies behind the end of a frame of {offer.size} bytes")
        return frames.chunked(frames.pieces(offer.record), CHUNK_BYTES, offset)

    def upload_offset(self, node: str, sha256: str, size: int) -> int:
        """Bytes of an upload the server already has; makes room for a new one, and keeps a whole one for this caller.

        Raises:
            LimitExceeded: the frame is larger than the server takes, alone or with what the node has sent before.
            BadMessage: the digest is not one, or the size differs from what was announced before.
        """
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise BadMessage(f"upload: expected a SHA-256 digest of 64 hexadecimal digits, got {sha256[:80]!r}")
        if size > self._max_payload_bytes:
            raise LimitExceeded(f"upload: a frame of {size} bytes exceeds the limit of {self._max_payload_bytes}")
        with self._lock:
            upload = self._uploads.get((node, sha256))
            if upload is None:
                # One unfinished upload per node: a node cannot make the server hold more than one frame it never ends.
                for key in [k for k, u in self._uploads.items() if k[0] == node and not u.complete]:
                    del self._uploads[key]
                held = sum(len(u.data) for key, u in self._uploads.items() if key[0] == node)
                if held + size > self._max_payload_bytes:
                    raise LimitExceeded(
                        f"upload: {held} bytes of node {node!r} wait for results that name them; with {size} more they "
                        f"exceed the limit of {self._max_payload_bytes}"
                    )
                upload = self._uploads[node, sha256] = _Upload(_room(size))
            if len(upload.data) != size:
                raise BadMessage(f"upload: announced with {len(upload.data)} bytes before, with {size} now")
            upload.stream += 1
            upload.uses += upload.complete
            return upload.received

    def upload(self, node: str, sha256: str, size: int, offset: int, chunks: Iterable[bytes]) -> int:
        """Take chunks of a frame; returns the bytes received so far.

        A chunk that would make the frame too long, or a frame with another digest than announced, is refused and
        the upload begins again from nothing.
        """
        with self._lock:
            upload = self._uploads.get((node, sha256))
            if upload is not None and upload.complete and offset == len(upload.data) == size:
                return size
        received = self.upload_offset(node, sha256, size)
        with self._lock:
            upload = self._uploads[node, sha256]
            stream = upload.stream
            if upload.complete:
                return received
        if offset != received:
            raise BadMessage(f"upload: continues at byte {offset}, the server has {received}; ask for the offset first")
        for chunk in chunks:
            if len(chunk) > CHUNK_BYTES or upload.received + len(chunk) > size:
                self._discard(node, sha256)
                raise LimitExceeded(
                    f"upload: chunk of {len(chunk)} bytes at {upload.received} of {size}; chunks have at most "
                    f"{CHUNK_BYTES} bytes and end with the frame"
                )
            with self._lock:
                if upload.stream != stream:
                    raise ServerUnreachable("upload: another call goes on with it; ask for the offset and continue")
                upload.data[upload.received : upload.received + len(chunk)] = chunk
                upload.received += len(chunk)
        if upload.received == size:
            if hashlib.sha256(upload.data).hexdigest() != sha256:
                self._discard(node, sha256)
                raise BadFrame("upload: the bytes do not have the digest announced; send the frame again")
            upload.complete = True
        return upload.received

    def take(self, node: str, ref: PayloadRef) -> Record:
        """The record an agent's reference means; an upload is handed out as often as it was sent.

        Raises:
            BadFrame, NotFound: the bytes are malformed or not there.
        """
        if ref.record is not None:
            return ref.record
        if ref.shared:
            if self._depot is None:
                raise NotFound(f"node {node!r} names shared memory, but this server has none")
            try:
                return frames.decode(self._depot.map(ref.shared, ref.size))
            except OSError as exc:
                raise NotFound(f"node {node!r} names a buffer {ref.shared[:40]!r} that is not there") from exc
        if ref.inline:
            return frames.decode(ref.inline)
        with self._lock:
            upload = self._uploads.get((node, ref.sha256))
            if upload is None or not upload.complete:
                raise NotFound(f"node {node!r} names an upload {ref.sha256[:16]!r} that is not complete here")
            self._use(node, ref.sha256, upload)
        return frames.decode(memoryview(upload.data))

    def drop(self, node: str, refs: Iterable[PayloadRef]) -> None:
        """Let go of what a refused result brought along."""
        with self._lock:
            for ref in refs:
                upload = self._uploads.get((node, ref.sha256))
                if upload is not None and upload.complete:
                    self._use(node, ref.sha256, upload)

    def forget(self, node: str) -> None:
        """Drop what a node has uploaded and not yet used."""
        with self._lock:
            for key in [key for key in self._uploads if key[0] == node]:
                del self._uploads[key]

    def close(self) -> None:
        """Give all memory back."""
        if self._depot is not None:
            self._depot.close()

    def _use(self, node: str, sha256: str, upload: _Upload) -> None:
        upload.uses -= 1
        if not upload.uses:
            del self._uploads[node, sha256]

    def _discard(self, node: str, sha256: str) -> None:
        with self._lock:
            self._uploads.pop((node, sha256), None)


def _room(size: int) -> bytearray | mmap.mmap:
    """A buffer that takes memory only as it is written, for a frame that may never come."""
    if not size:
        return bytearray()
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    except (OSError, OverflowError) as exc:
        raise LimitExceeded(f"upload: the server has no room for a frame of {size} bytes") from exc
