"""Structured logs: fields in systemd's journal, JSON lines, or columns for a person at a terminal.

What is bound in context variables stands in every line that is written for a request or an order.

Secrets are struck out. The strike-out is a second net: nothing above hands secrets to a logger in the first place.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import structlog

from scaivaultd.logs_journal import SOCKET, JournalLogger, is_journal
from scaivaultd.model import tracing

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger, Processor

_SECRET_NAMES = re.compile(r"(^|_)(token|secret|password|authorization|hmac_key|private_key)(_|$)", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|eyJ[\w-]{8,}\.[\w-]*\.[\w-]{16,}"  # compact JWS
    r"|://[^/\s:@]+:[^/\s@]+@"  # a password in a URL
    r"|scv[a-z]_[0-9A-Za-z]{8}_[0-9A-Za-z]{8,}"  # an API token, or most of one
    r"|\bS[UAOCNX][A-Z2-7]{56}\b"  # an nkey seed
    r"|\b([Bb]earer|[Bb]asic|[Tt]oken) [\w.~+/-]{16,}=*",  # the value of an Authorization header
    re.DOTALL,
)


def configure(
    level: Literal["debug", "info", "warning", "error"],
    style: Literal["auto", "journal", "json", "console"],
    stream: TextIO | None = None,
    journal_socket: Path = SOCKET,
) -> FilteringBoundLogger:
    """Set up logging for the whole process, foreign libraries included, and return the root logger."""
    output = stream or sys.stderr
    if style == "auto":
        style = "journal" if is_journal(output, os.environ) else "console" if output.isatty() else "json"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        strike_secrets,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=output.isatty(), timestamp_key="ts")
        if style == "console"
        else structlog.processors.JSONRenderer()
    )
    journal = JournalLogger(output, journal_socket) if style == "journal" else None
    structlog.configure(
        processors=[_Threshold(level), *shared, _as_entry if journal else renderer],
        # Loggers are bound early and kept: the level that may change later is not theirs.
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        logger_factory=(lambda *_: journal) if journal else structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    _adopt_foreign(shared, _ForeignToJournal(journal) if journal else logging.StreamHandler(output), renderer)
    return cast("FilteringBoundLogger", structlog.get_logger())


def set_level(level: Literal["debug", "info", "warning", "error"]) -> None:
    """Write what is as important as that from now on; for loggers that are there already too."""
    for each in structlog.get_config()["processors"]:
        if isinstance(each, _Threshold):
            each.level = level


class _Threshold:
    """Processor: drop what is less important than the level, before any work is done for it."""

    def __init__(self, level: str) -> None:
        self.level = level

    def __call__(self, logger: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if _weight(method) < _weight(self.level):
            raise structlog.DropEvent
        return entry


def _weight(name: str) -> int:
    return logging.getLevelNamesMapping()["ERROR" if name == "exception" else name.upper()]


class _ForeignToJournal(logging.Handler):
    """Lets what libraries log go the same way."""

    def __init__(self, journal: JournalLogger) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        self._journal.write(json.loads(self.format(record)))


def _as_entry(logger: Any, method: str, entry: MutableMapping[str, Any]) -> tuple[tuple[Any], dict[str, Any]]:
    """Processor: the entry itself is what the journal's logger takes."""
    return (entry,), {}


def _add_trace(logger: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor: which trace a line belongs to."""
    if (trace := tracing.current()) is not None:
        entry.setdefault("trace_id", trace.trace_id)
    return entry


def strike_secrets(logger: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor: replace what looks like a secret, by its name or by its form."""
    for name, value in entry.items():
        entry[name] = _struck(name, value)
    return entry


def _struck(name: object, value: Any) -> Any:
    if isinstance(name, str) and _SECRET_NAMES.search(name) and not isinstance(value, int | float | None):
        return "<secret>"
    match value:
        case str():
            return _SECRET_TEXT.sub("<secret>", value)
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case dict():
            return {key: _struck(key, inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_struck(None, inner) for inner in value]
        case _:
            return value


def _adopt_foreign(shared: list[Processor], handler: logging.Handler, renderer: Processor) -> None:
    """Let libraries that use `logging` speak through the same processors, warnings and worse only."""
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
