"""Columns that a table of an older version lacks."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping


def add_columns(database: sqlite3.Connection, table: str, columns: Mapping[str, str]) -> None:
    """Add the columns that a table does not have yet.

    Args:
        database: the table's database.
        table: its name.
        columns: name and definition of each column, with a default.
    """
    known = {row[1] for row in database.execute(f"pragma table_info({table})")}
    for name, definition in columns.items():
        if name not in known:
            database.execute(f"alter table {table} add column {name} {definition}")
