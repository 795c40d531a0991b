"""Where the time of an issuance goes: wall time between the lines of a debug log, CPU by part of the program.

The log must be that of one order at a time: lines of requests do not say whose they are.
"""

from __future__ import annotations

import json
import pstats
import re
import statistics
from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# By Pebble's URLs. A request to an order URL is a poll, and before it comes the pause.
REQUESTS = (
    ("newOrder", re.compile(r"/order-plz")),
    ("authorization", re.compile(r"/authZ/")),
    ("challenge response", re.compile(r"/chalZ/")),
    ("finalize", re.compile(r"/finalize-order/")),
    ("download", re.compile(r"/certZ/")),
    ("poll", re.compile(r"/my-order/")),
    ("newNonce", re.compile(r"/nonce-plz")),
)
BEFORE = {
    "newOrder": "accepted to newOrder: key, claim",
    "authorization": "newOrder to authorization: order URL stored",
    "challenge response": "authorization to response: journal, present",
    "poll": "pauses before polls",
    "finalize": "ready to finalize: status stored, CSR",
    "download": "valid to download: URL stored",
    "newNonce": "before newNonce",
}

PARTS = (
    ("signing", ("josepy", "acme/jws", "acme/signing", "bench/sign")),
    ("HTTP to the CA", ("aiohttp", "yarl", "multidict", "frozenlist", "propcache", "net/acme_http", "net/guard")),
    ("TLS and sockets", ("ssl.py", "sslproto", "selector_events", "_ssl", "socket")),
    ("NATS", ("nats/", "gateways/")),
    ("store", ("store/", "services/documents", "sqlite3")),
    ("certificates and keys", ("acme/x509", "cryptography")),
    ("JSON", ("msgspec", "json/", "acme/wire")),
    ("logging", ("structlog", "logs.py")),
    ("http-01 listener", ("listeners/",)),
    ("event loop", ("asyncio", "select.epoll", "threading", "concurrent")),
    ("services", ("scaivaultd/",)),
)


class Steps:
    """Milliseconds by step, one figure for each certificate."""

    def __init__(self, certificates: Sequence[Mapping[str, float]]) -> None:
        self._certificates = certificates

    @classmethod
    def of_log(cls, log: str) -> Steps:
        """Read a debug log in JSON."""
        return cls([_measured(lines) for lines in _lives(log)])

    @property
    def count(self) -> int:
        """How many certificates there are."""
        return len(self._certificates)

    def medians(self) -> Iterator[tuple[str, float]]:
        """Each step with its median, in the order of the steps, and the whole."""
        names = dict.fromkeys(name for each in self._certificates for name in each)
        for name in names:
            yield name, statistics.median(each.get(name, 0.0) for each in self._certificates)
        if self._certificates:
            yield "all", statistics.median(sum(each.values()) for each in self._certificates)


def _lives(log: str) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The lines of each order, from its acceptance until its event is out."""
    lines: list[Mapping[str, Any]] | None = None
    for text in log.splitlines():
        if not text.startswith("{"):
            continue
        line = json.loads(text)
        if line["event"] == "order.accepted":
            lines = []
        if lines is None:
            continue
        lines.append(line)
        if line["event"] == "event.published":
            yield lines
            lines = None


def _measured(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    took: dict[str, float] = defaultdict(float)
    previous = _moment(lines[0])
    for line in lines:
        now = _moment(line)
        match line["event"]:
            case "acme.request":
                name = next((name for name, pattern in REQUESTS if pattern.search(line["url"])), "another request")
                gap = max(0.0, now - previous - line["duration_ms"])
                took[BEFORE.get(name, f"before {name}")] += gap
                took[f"request: {name}"] += now - previous - gap
            case "certificate.issued":
                took["download to stored: checks, commit"] += now - previous
            case "event.published":
                took["stored to event acknowledged"] += now - previous
            case _:
                # Not a step of its own: its time belongs to the next that is.
                continue
        previous = now
    return took


def _moment(line: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(line["ts"]).timestamp() * 1000


def shares(statistics_file: Path) -> Sequence[tuple[str, float]]:
    """The share of each part in the busy time of a profile, largest first."""
    times: dict[str, float] = defaultdict(float)
    rows: Mapping[tuple[str, int, str], tuple[Any, ...]] = vars(pstats.Stats(str(statistics_file)))["stats"]
    for (path, _, function), (_, _, own_seconds, _, callers) in rows.items():
        for place, seconds in _places(path, function, own_seconds, callers):
            times[_part_of(place)] += seconds
    times.pop("waiting", None)
    whole = sum(times.values())
    return sorted(((name, seconds / whole) for name, seconds in times.items()), key=lambda each: -each[1])


def _places(
    path: str, function: str, own_seconds: float, callers: Mapping[tuple[str, int, str], Any]
) -> Iterator[tuple[str, float]]:
    """Where own time was spent: a function written in C says little, so its callers are charged for it."""
    if path != "~" or "poll" in function:
        yield f"{path} {function}", own_seconds
        return
    for (caller_path, _, caller), figures in callers.items():
        yield f"{caller_path} {caller} {function}", figures[2]


def _part_of(place: str) -> str:
    if "method 'poll' of 'select.epoll'" in place:
        return "waiting"
    return next((name for name, marks in PARTS if any(mark in place for mark in marks)), "the rest")
