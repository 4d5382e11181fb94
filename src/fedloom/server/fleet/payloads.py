"""Frames on the server: broadcasts offered to agents, and incoming uploads.

A broadcast is one record, whatever the number of clients that read it. An agent reads it in the form that suits its
location: the record itself (in this process), the host's memory, inside the message, or streamed by digest. Each
form is made once, by `prepare`, which copies or hashes the whole record. That and decoding are long work: no lock that
another node's call needs is taken meanwhile. `ref` only refers to an existing form.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedloom.core import frames
from fedloom.core.depot import Buffer, Depot
from fedloom.core.errors import BadFrame, BadMessage, LimitExceeded, NotFound, ServerUnreachable
from fedloom.core.layout import Layout
from fedloom.core.messages import MAX_PAYLOAD_BYTES, PayloadRef
from fedloom.core.pinned import Pinned
from fedloom.core.records import Record
from fedloom.core.reserved import reserve

CHUNK_BYTES = 1 << 20
"""Bytes in one raw chunk of a download or upload: the fastest size over gRPC."""
INLINE_BYTES = 128 << 10
"""Frames up to this size travel inside the message instead of a separate transfer."""
LOCAL_INLINE_BYTES = 8 << 10
"""The same for agents on this host, for which the alternative is cheaper."""

Form = Literal["record", "inline", "shared", "streamed"]
"""How an agent reads an offer."""


@dataclass
class Offer:
    """A broadcast in one of its exchanges (in all of them, if it is pinned): the record and its forms so far."""

    record: Record
    layout: Layout
    buffer: Buffer | None = None
    sha256: str = ""
    inline: bytes = b""
    listed: bool = False
    """Whether it can be downloaded by its digest."""
    ended: bool = False
    """Whether it has been withdrawn; a form finished later is released immediately."""
    refs: dict[Form, PayloadRef] = field(default_factory=dict)
    """References to its forms so far: the same for all readers."""
    reported: set[str] = field(default_factory=set)
    """Sessions on this host that have had a reference to it; the payload counts once for each."""
    making: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Locked while one of its forms is made, so that each is made once."""

    @property
    def size(self) -> int:
        """Return the bytes of the frame."""
        return self.layout.size

    @property
    def pinned(self) -> bool:
        """Return whether the record never changes, so that the offer outlives its exchange."""
        return isinstance(self.record, Pinned)


@dataclass
class Upload:
    """A frame on its way from an agent, or here and not yet used."""

    data: bytearray | mmap.mmap
    """Buffer of the frame; it takes memory only as bytes arrive."""
    received: int = 0
    complete: bool = False
    uses: int = 1
    """Results that will refer to it: equal frames are sent once."""
    stream: int = 0
    """Counts its callers; one that queries the offset takes the upload over from a broken stream."""

    def write(self, chunk: bytes) -> None:
        """Add the next bytes; NumPy releases the interpreter lock meanwhile."""
        end = self.received + len(chunk)
        np.copyto(np.frombuffer(self.data, np.uint8)[self.received : end], np.frombuffer(chunk, np.uint8))
        self.received = end


class PayloadStore:
    """All frames the server offers or receives. Thread-safe.

    Args:
        depot: shared memory for agents on this host; None without such agents.
        max_payload_bytes: size limit of a frame from an agent.
    """

    def __init__(self, depot: Depot | None, *, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._depot = depot
        self._max_payload_bytes = max_payload_bytes
        self._lock = threading.Lock()
        """Never locked for longer than it takes to copy one chunk."""
        self._depot_lock = threading.Lock()
        """Lock for leasing and releasing: the host may take long to find memory for a new buffer."""
        self._by_digest: dict[str, list[Offer]] = {}
        self._pinned: dict[str, dict[str, Offer]] = {}
        """Pinned records on offer by digest, for each run."""
        self._uploads: dict[tuple[str, str], Upload] = {}

    @property
    def max_payload_bytes(self) -> int:
        """Return the size limit of a frame from an agent."""
        return self._max_payload_bytes

    @property
    def depot(self) -> Depot | None:
        """Return the shared memory of this host, if the server has any."""
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
        """Withdraw all pinned records of a run except these."""
        pinned = self._pinned.pop(run_id, {})
        for sha256 in pinned.keys() - set(digests):
            self._end(pinned.pop(sha256))
        if pinned:
            self._pinned[run_id] = pinned

    def prepare(self, offer: Offer, localities: Collection[str]) -> None:
        """Make the forms that agents of these localities (`process`, `host`, `remote`) read, unless they exist.

        Copies or hashes the whole record; concurrent callers for the same offer wait.

        Raises:
            StorageFull: the host's shared memory is exhausted.
        """
        for locality in localities:
            with offer.making:
                if not self.ready(offer, locality) and not offer.ended:
                    self._make(offer, self._form(offer, locality))

    def ready(self, offer: Offer, locality: str) -> bool:
        """Return whether `ref` can refer to the offer for agents of a locality."""
        match self._form(offer, locality):
            case "record":
                return True
            case "inline":
                return bool(offer.inline)
            case "shared":
                return offer.buffer is not None
            case "streamed":
                return offer.listed

    def ref(self, offer: Offer, locality: str) -> PayloadRef:
        """Return a reference for an agent of a locality the offer was prepared for.

        Raises:
            RuntimeError: it was not, or it has been withdrawn since.
        """
        if not self.ready(offer, locality):
            raise RuntimeError(f"an offer of {offer.size} bytes is sent to a {locality} agent before it is prepared")
        form = self._form(offer, locality)
        if form not in offer.refs:
            offer.refs[form] = self._new_ref(offer, form)
        return offer.refs[form]

    def _new_ref(self, offer: Offer, form: Form) -> PayloadRef:
        sha256 = offer.sha256 if offer.pinned else ""
        if form == "record":
            return PayloadRef(size=offer.size, record=offer.record, sha256=offer.sha256, pinned=offer.pinned)
        if form == "inline":
            return PayloadRef(size=offer.size, inline=offer.inline)
        if form == "shared" and offer.buffer is not None:
            return PayloadRef(size=offer.size, shared=offer.buffer.name, sha256=sha256, pinned=offer.pinned)
        return PayloadRef(size=offer.size, sha256=offer.sha256, pinned=offer.pinned)

    def withdraw(self, offer: Offer) -> None:
        """Withdraw an offer whose exchange is over; its memory may be reused, unless it is pinned."""
        if not offer.pinned:
            self._end(offer)

    def _form(self, offer: Offer, locality: str) -> Form:
        """Return how agents of a locality read an offer."""
        if locality == "process":
            return "record"
        limit = LOCAL_INLINE_BYTES if locality == "host" else INLINE_BYTES
        if offer.size <= limit and not offer.pinned:
            return "inline"
        return "shared" if locality == "host" and self._depot is not None else "streamed"

    def _make(self, offer: Offer, form: Form) -> None:
        if form == "inline":
            offer.inline = bytes(frames.encode(offer.record))
        elif form == "shared" and self._depot is not None:
            self._share(offer, self._depot)
        elif form == "streamed":
            self._list(offer)

    def _share(self, offer: Offer, depot: Depot) -> None:
        """Copy an offer into the host's memory."""
        with self._depot_lock:
            buffer = depot.lease(offer.size)
        try:
            frames.write_into(offer.record, buffer.memory, offer.layout)
        except BaseException:
            with self._depot_lock:
                depot.release(buffer.name)
            raise
        with self._lock:
            if not offer.ended:
                offer.buffer = buffer
                if isinstance(offer.record, Pinned):  # one copy on this host, the server's own included
                    offer.record.move(offer.layout.views(buffer.memory.toreadonly()))
                return
        with self._depot_lock:
            depot.release(buffer.name)

    def _list(self, offer: Offer) -> None:
        """Hash an offer and make it available for downloads."""
        sha256 = offer.sha256 or frames.digest(offer.record)
        with self._lock:
            if not offer.ended:
                offer.sha256, offer.listed = sha256, True
                self._by_digest.setdefault(sha256, []).append(offer)

    def _end(self, offer: Offer) -> None:
        with self._lock:
            offer.ended, offer.listed = True, False
            buffer, offer.buffer = offer.buffer, None
            left = [other for other in self._by_digest.pop(offer.sha256, []) if other is not offer]
            if left:
                self._by_digest[offer.sha256] = left
        if buffer is not None and self._depot is not None:
            with self._depot_lock:
                give_back = self._depot.abandon if offer.pinned else self._depot.release
                give_back(buffer.name)

    def download(self, sha256: str, offset: int) -> Iterator[bytes]:
        """Yield the frame from `offset` on, in chunks; allocates at most one chunk besides the record itself.

        Raises:
            NotFound: no such payload is on offer (any more).
            BadMessage: the offset is beyond the frame's end.
        """
        with self._lock:
            offer = next(iter(self._by_digest.get(sha256, [])), None)
        if offer is None:
            raise NotFound(f"no payload with digest {sha256[:16]!r} is on offer; its round may have ended")
        if offset > offer.size:
            raise BadMessage(f"download: offset {offset} is beyond the end of a frame of {offer.size} bytes")
        return frames.chunked(frames.pieces(offer.record), CHUNK_BYTES, offset)

    def upload_offset(self, node: str, sha256: str, size: int, limit: int | None = None) -> int:
        """Return the bytes of an upload already received; allocates a new one, reserves a complete one for this caller.

        Args:
            node: whose upload it is.
            sha256: digest of the frame.
            size: bytes of the frame.
            limit: bytes of all that the node has uploaded and no result has used; None for the store's own limit.

        Raises:
            LimitExceeded: the frame exceeds the server's limit, alone or with the node's earlier uploads.
            BadMessage: the digest is malformed, or the size differs from the one announced before.
        """
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise BadMessage(f"upload: expected a SHA-256 digest of 64 hexadecimal digits, got {sha256[:80]!r}")
        most = self._max_payload_bytes if limit is None else min(limit, self._max_payload_bytes)
        if size > most:
            raise LimitExceeded(
                f"upload: a frame of {size} bytes exceeds the limit of {most}, which is for the groups "
                f"that node {node!r} has"
            )
        with self._lock:
            upload = self._uploads.get((node, sha256))
            if upload is None:
                # One unfinished upload per node: a node can make the server store at most one unfinished frame.
                for key in [k for k, u in self._uploads.items() if k[0] == node and not u.complete]:
                    del self._uploads[key]
                waiting_bytes = sum(len(u.data) for key, u in self._uploads.items() if key[0] == node)
                if waiting_bytes + size > most:
                    raise LimitExceeded(
                        f"upload: {waiting_bytes} bytes of node {node!r} wait for their results; with {size} more they "
                        f"exceed the limit of {most}"
                    )
                upload = self._uploads[node, sha256] = Upload(reserve(size))
            if len(upload.data) != size:
                raise BadMessage(f"upload: announced with {len(upload.data)} bytes before, now with {size}")
            upload.stream += 1
            upload.uses += upload.complete
            return upload.received

    def upload(
        self, node: str, sha256: str, size: int, offset: int, chunks: Iterable[bytes], *, limit: int | None = None
    ) -> int:
        """Store chunks of a frame; returns the bytes received so far. Arguments as `upload_offset`.

        A chunk that would make the frame too long, or a frame with another digest than announced, is refused and
        the upload begins again from nothing.
        """
        with self._lock:
            upload = self._uploads.get((node, sha256))
            if upload is not None and upload.complete and offset == len(upload.data) == size:
                return size
        received = self.upload_offset(node, sha256, size, limit)
        with self._lock:
            upload = self._uploads[node, sha256]
            stream = upload.stream
            if upload.complete:
                return received
        if offset != received:
            raise BadMessage(f"upload: continues at byte {offset}, the server has {received}; query the offset first")
        for chunk in chunks:
            if len(chunk) > CHUNK_BYTES or upload.received + len(chunk) > size:
                self._discard(node, sha256)
                raise LimitExceeded(
                    f"upload: chunk of {len(chunk)} bytes at {upload.received} of {size}; chunks have at most "
                    f"{CHUNK_BYTES} bytes and end with the frame"
                )
            with self._lock:
                if upload.stream != stream:
                    raise ServerUnreachable("upload: another call continues it; query the offset and continue")
                upload.write(chunk)
        if upload.received == size:
            if hashlib.sha256(upload.data).hexdigest() != sha256:
                self._discard(node, sha256)
                raise BadFrame("upload: the bytes do not have the digest announced; send the frame again")
            upload.complete = True
        return upload.received

    def take(self, node: str, ref: PayloadRef) -> Record:
        """Return the record of an agent's reference; an upload can be taken as often as it was sent.

        Raises:
            BadFrame, NotFound: the bytes are malformed or missing.
        """
        return self.take_all(node, [ref])[0]

    def take_all(self, node: str, refs: Sequence[PayloadRef]) -> list[Record]:
        """Return the records of a result's references, in order. Its uploads are used up in any case.

        Raises:
            BadFrame, NotFound: the bytes of one are malformed or missing.
        """
        with self._lock:
            uploads = [self._use(node, ref) for ref in refs]
        return [self._read(node, ref, upload) for ref, upload in zip(refs, uploads, strict=True)]

    def drop(self, node: str, refs: Iterable[PayloadRef]) -> list[Upload]:
        """Release the payloads of an unwanted result.

        Returns:
            The owner of its memory: freeing takes long, so the caller does it without a lock.
        """
        with self._lock:
            uploads = [self._use(node, ref) for ref in refs]
        return [upload for upload in uploads if upload is not None]

    def forget(self, node: str) -> list[Upload]:
        """Drop a node's unused uploads; returns what `drop` does."""
        with self._lock:
            return [self._uploads.pop(key) for key in [key for key in self._uploads if key[0] == node]]

    def close(self) -> None:
        """Release all memory."""
        if self._depot is not None:
            self._depot.close()

    def _use(self, node: str, ref: PayloadRef) -> Upload | None:
        """Return the complete upload of a reference, used once; None if there is none."""
        upload = self._uploads.get((node, ref.sha256))
        if upload is None or not upload.complete:
            return None
        upload.uses -= 1
        if not upload.uses:
            del self._uploads[node, ref.sha256]
        return upload

    def _read(self, node: str, ref: PayloadRef, upload: Upload | None) -> Record:
        if ref.record is not None:
            return ref.record
        if ref.shared:
            if self._depot is None:
                raise NotFound(f"node {node!r} refers to shared memory, but this server has none")
            try:
                return frames.decode(self._depot.map(ref.shared, ref.size))
            except OSError as exc:
                raise NotFound(f"node {node!r} refers to a buffer {ref.shared[:40]!r} that does not exist") from exc
        if ref.inline:
            return frames.decode(ref.inline)
        if upload is None:
            raise NotFound(f"node {node!r} refers to an upload {ref.sha256[:16]!r} that is not complete")
        return frames.decode(memoryview(upload.data))

    def _discard(self, node: str, sha256: str) -> None:
        with self._lock:
            self._uploads.pop((node, sha256), None)
