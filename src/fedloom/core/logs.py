"""Log lines, for people and as JSON, with run, round and node if they apply."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

ABOUT = ("run", "round", "node")
"""Keys of a log call's `extra` that are written."""


class TextFormatter(logging.Formatter):
    """`TIME LEVEL [run R, round N, node M] MESSAGE`; further lines are indented, and control characters removed.

    Messages quote what nodes and users have sent, which must not look like lines of the log's own.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(sep=" ", timespec="seconds")
        about = ", ".join(f"{key} {getattr(record, key)}" for key in ABOUT if hasattr(record, key))
        text = record.getMessage() + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")
        lines = ["".join(sign if sign.isprintable() else " " for sign in line) for line in text.splitlines()]
        return f"{time} {record.levelname} " + (f"[{about}] " if about else "") + "\n    ".join(lines)


class JsonFormatter(logging.Formatter):
    """`{"at": …, "level": …, "logger": …, "message": …, "run": …, "round": …, "node": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: getattr(record, key) for key in ABOUT if hasattr(record, key)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
