"""The one SQLite library of the process.

SQLite up to 3.51.2 can corrupt a WAL database when two connections write and checkpoint at the same moment, which is
how we work; `pysqlite3` brings a newer one where it has a wheel. Two SQLite libraries in one process would drop each
other's file locks, so the choice is made here, before aiosqlite is imported, and nobody else imports `sqlite3`.
"""

from __future__ import annotations

import sqlite3
import sys

try:
    import pysqlite3
except ImportError:
    pass
else:
    sys.modules["sqlite3"] = pysqlite3
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2
    sqlite3 = pysqlite3

import aiosqlite

SAFE_VERSION = (3, 51, 3)

Connection = sqlite3.Connection
OperationalError = sqlite3.OperationalError
DatabaseError = sqlite3.DatabaseError
IntegrityError = sqlite3.IntegrityError
connect = sqlite3.connect
complete_statement = sqlite3.complete_statement
version = sqlite3.sqlite_version
version_info = sqlite3.sqlite_version_info

assert aiosqlite.core.__dict__["sqlite3"] is sqlite3, "aiosqlite was imported before storage.backends.sqlite.driver"

__all__ = [
    "SAFE_VERSION",
    "Connection",
    "DatabaseError",
    "IntegrityError",
    "OperationalError",
    "aiosqlite",
    "complete_statement",
    "connect",
    "version",
    "version_info",
]
