"""Memory for a frame that is still to come."""

from __future__ import annotations

import mmap

from fedloom.core.errors import LimitExceeded

_LARGE_BYTES = 4 << 20
"""From this size on memory comes in huge pages, if the machine has them."""


def reserve(size: int) -> bytearray | mmap.mmap:
    """Return a zeroed buffer of `size` bytes that occupies memory only as it is written.

    A large one is made of huge pages: unmapping a gigabyte of small ones would stop all threads for 0.1 s.

    Raises:
        LimitExceeded: the machine has no address space for it.
    """
    if not size:
        return bytearray()
    try:
        buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    except (OSError, OverflowError) as exc:
        raise LimitExceeded(f"no memory for a frame of {size} bytes") from exc
    if size >= _LARGE_BYTES:
        try:
            buffer.madvise(mmap.MADV_HUGEPAGE)
        except (AttributeError, OSError):  # a kernel without them
            return buffer
    return buffer
