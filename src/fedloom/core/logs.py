"""Log lines as JSON: one object per line, with the run, round and node it is about where there is one."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

ABOUT = ("run", "round", "node")
"""What a log call's `extra` may say it is about."""


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
