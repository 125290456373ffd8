"""How events become lines on standard error: JSON for machines, columns for people.

Events are `noun.happened` with values as keys. The standard library's records (aiohttp, asyncio) come out in
the same form, as the event `python.logged`, so that one reader understands every line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from storage.settings import Settings

_log = structlog.get_logger()
_plain: dict[str, Any] = {"process": "", "renderer": None, "stream": None}
"""The process that lines name, the last processor where lines are JSON and tell of such events at all, and where they
go."""


class LineStream:
    """Where lines go, which may be a full disk: what cannot be written is left out, and nobody who logs hears of it.

    Each text is one write, so that lines of several processes do not end up inside each other.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = -1
        with suppress(OSError, ValueError, AttributeError):
            self._descriptor = stream.fileno()
        self._is_cut = False

    def write(self, text: str) -> int:
        """Write it, as far as that goes."""
        with suppress(OSError, ValueError):
            if self._descriptor < 0:
                return self._stream.write(text)
            # Past the buffer of the stream, which would keep what it could not write and try it again and again.
            content = (b"\n" if self._is_cut else b"") + text.encode(errors="backslashreplace")
            written = 0
            try:
                while written < len(content):
                    written += os.write(self._descriptor, content[written:])
            finally:
                self._is_cut = self._is_cut if not written else written < len(content)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""
        if self._descriptor < 0:
            with suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()


def configure_logs(settings: Settings, *, process: str) -> None:
    """Send every event of this process to standard error; each carries the name of the process."""
    stream = LineStream(sys.stderr)
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks are plain in both forms: the richer ones print local variables, and those hold tokens and vectors.
    last: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stream)),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    _plain.update(process=process, stream=stream, renderer=last[-1] if as_json and level <= logging.INFO else None)
    _route_standard_logging([_standard_event, *shared, *last], level, stream)


class QuickLog:
    """A logger for an event of every request: JSON goes out without the chain of processors, a thirtieth of a query."""

    def info(self, event: str, *, at_s: float, **values: object) -> None:
        """As any logger. `at_s` is when it happened, in seconds since 1970."""
        if structlog.get_config()["processors"][-1] is not _plain["renderer"]:
            _log.info(event, **values)
            return
        time = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = {**values, "process": _plain["process"], "event": event, "level": "info", "timestamp": time}
        _plain["stream"].write(_json(line) + "\n")


def _json(event: EventDict, **_: object) -> str:
    """A line of JSON: four times as fast as the standard library writes it."""
    try:
        return orjson.dumps(event, default=repr).decode()
    except TypeError:  # Half a surrogate pair, or a number beyond 64 bits: out of somebody's request.
        return json.dumps(event, default=repr)


def _route_standard_logging(processors: list[Processor], level: int, stream: LineStream) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[_without_record, *processors]))
    # Below a warning the libraries only talk to their own authors.
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _without_record(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Keep the logger's name of a standard record and let go of the record itself."""
    record: logging.LogRecord = event.pop("_record")
    event.pop("_from_structlog", None)
    event["logger"] = record.name
    return event


def _standard_event(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Give a standard record the name every such line has, and its text as a value."""
    event["message"] = event["event"]
    event["event"] = "python.logged"
    return event
