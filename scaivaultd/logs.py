"""Structured logs on stderr: JSON lines, or columns for a person at a terminal. Secrets are struck out.

The strike-out is a second net: nothing above hands secrets to a logger in the first place.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

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
    style: Literal["auto", "json", "console"],
    stream: TextIO | None = None,
) -> FilteringBoundLogger:
    """Set up logging for the whole process, foreign libraries included, and return the root logger."""
    output = stream or sys.stderr
    console = style == "console" or (style == "auto" and output.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        strike_secrets,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=output.isatty(), timestamp_key="ts")
        if console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    _adopt_foreign(shared, renderer, output)
    return cast("FilteringBoundLogger", structlog.get_logger())


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


def _adopt_foreign(shared: list[Processor], renderer: Processor, output: TextIO) -> None:
    """Let libraries that use `logging` speak through the same processors, warnings and worse only."""
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
