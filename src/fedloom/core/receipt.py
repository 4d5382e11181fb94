"""When a certificate was received and renewed, by clocks that may be wrong: `receipt.json` in the identity's folder.

Times of files are not used: a copy, a backup or a wrong clock changes them. Within one start of the machine, the time
that has passed follows from a clock that nobody can set. After a restart it follows from the wall clock and is an
estimate, and so is everything that a copy of the folder says; the server is asked then.
"""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fedloom.core import files
from fedloom.core.records import JsonObject

FILE = "receipt.json"
CLOCK_SLACK_S = 60.0
"""Seconds by which a clock may be corrected backwards."""
_FIRST_S, _LAST_S = -62_000_000_000.0, 253_402_300_800.0
"""Seconds from 1970 to the years 5 and 10000."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")
_NETWORK = Path("/sys/class/net")


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A moment, by this machine's clocks."""

    wall: float
    """Seconds since 1970-01-01 UTC."""
    boot: str
    """Id of this start of the machine; empty where none is known."""
    uptime: float
    """Seconds since that start, including sleep."""

    @classmethod
    def now(cls) -> Moment:
        """Read the clocks."""
        return cls(wall=_wall(), boot=_boot(), uptime=_uptime())

    def is_of_this_start(self) -> bool:
        """Return whether the machine was not restarted since, so that the time passed since then is exact."""
        return bool(self.boot) and self.boot == _boot() and _uptime() >= self.uptime

    def passed_s(self) -> float | None:
        """Return the seconds since then; None if the wall clock, which they would follow from, was set back since."""
        if self.is_of_this_start():
            return _uptime() - self.uptime
        passed = _wall() - self.wall
        return max(0.0, passed) if passed > -CLOCK_SLACK_S else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What an identity's folder says about its certificate's age."""

    certificate: str
    """SHA-256 of the certificate that it is about."""
    received: Moment | None
    """When the certificate came, or the server's word on it; None if that is not known."""
    left_s: float
    """Seconds for which the certificate was valid at that moment, by the server."""
    attempted: Moment | None = None
    """The last attempt to renew."""
    place: str = ""
    """A random word for this folder on this machine: a copy of the folder makes its own."""
    here: str = ""
    """Digest of machine and folder, by which a copy is noticed."""

    @classmethod
    def load(cls, folder: Path, certificate: bytes) -> Receipt:
        """Return the receipt of a certificate (PEM); one that says nothing where the folder's cannot be used."""
        mine, here = _digest(certificate), _here(folder)
        try:
            receipt = _parsed(json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(certificate=mine, received=None, left_s=0.0, place=secrets.token_hex(16), here=here)
        if receipt.here != here:
            receipt = replace(receipt, received=None, place=secrets.token_hex(16), here=here)
        return receipt if receipt.certificate == mine else replace(receipt, certificate=mine, received=None)

    def save(self, folder: Path) -> None:
        """Write it. Raises `OSError`."""
        content: JsonObject = {
            "certificate": self.certificate,
            "received": _as_json(self.received),
            "left_s": self.left_s,
            "attempted": _as_json(self.attempted),
            "place": self.place,
            "here": self.here,
        }
        files.write(folder / FILE, json.dumps(content, indent=2).encode() + b"\n", private=True)

    def got(self, certificate: bytes, left_s: float) -> Receipt:
        """Return it for a certificate (PEM) that the server has just said to be valid for `left_s` seconds."""
        return replace(self, certificate=_digest(certificate), received=Moment.now(), left_s=left_s)

    def tried(self) -> Receipt:
        """Return it with an attempt to renew that begins now."""
        return replace(self, attempted=Moment.now())

    def is_exact(self) -> bool:
        """Return whether the time since the receipt is measured, not estimated from a clock that can be set."""
        return self.received is not None and self.received.is_of_this_start()

    def remaining_s(self) -> float:
        """Return the seconds of validity that are left by this machine's clocks; 0 where they say nothing."""
        passed = None if self.received is None else self.received.passed_s()
        return 0.0 if passed is None else self.left_s - passed

    def until_next_s(self, every_s: float) -> float:
        """Return the seconds until the next attempt to renew may begin, `every_s` after the last one."""
        if self.attempted is None:
            return 0.0
        passed = self.attempted.passed_s()
        return every_s if passed is None else max(0.0, every_s - passed)


def _parsed(content: object) -> Receipt:
    """Raises `ValueError`, `KeyError` or `TypeError` for what is not a receipt."""
    if not isinstance(content, dict):
        raise ValueError("expected an object")
    return Receipt(
        certificate=str(content["certificate"]),
        received=_moment(content["received"]),
        left_s=float(content["left_s"]),
        attempted=_moment(content["attempted"]),
        place=str(content["place"]),
        here=str(content["here"]),
    )


def _moment(content: object) -> Moment | None:
    if content is None:
        return None
    if not isinstance(content, dict):
        raise ValueError("expected an object")
    wall, uptime = float(content["wall"]), float(content["uptime"])
    if not (_FIRST_S < wall < _LAST_S and 0 <= uptime < _LAST_S):
        raise ValueError(f"expected a moment that a calendar has, got {wall}")
    return Moment(wall=wall, boot=str(content["boot"]), uptime=uptime)


def _as_json(moment: Moment | None) -> JsonObject | None:
    return None if moment is None else {"wall": moment.wall, "boot": moment.boot, "uptime": moment.uptime}


def _digest(certificate: bytes) -> str:
    return hashlib.sha256(certificate).hexdigest()


def _here(folder: Path) -> str:
    """Return a digest of the machine and the folder: another one on another machine, and in another folder."""
    cards = sorted(_text(card / "address") for card in _entries(_NETWORK) if (card / "device").exists())
    try:
        where = (str(folder.resolve()), folder.stat().st_ino)
    except OSError:
        where = (str(folder), 0)
    return hashlib.sha256(repr((platform.node(), _text(_MACHINE_ID), cards, where)).encode()).hexdigest()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _wall() -> float:
    return time.time()


def _boot() -> str:
    return _text(_BOOT_ID)


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()
