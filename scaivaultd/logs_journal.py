"""The native protocol of systemd's journal: entries with fields, one datagram each (systemd.journal-fields(7)).

`journalctl SCAIVAULT_CERT_ID=cert_...` then finds all that concerns one certificate.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import struct
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "scaivaultd"
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
_NAMES = {"certificate_id": "CERT_ID", "event": "EVENT"}
_FIELD = re.compile(r"[^A-Z0-9]+")
_FIELD_MAX = 64
_UNSAID = frozenset({"event", "level", "ts", "exception", "detail"})


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether a stream is systemd's connection to the journal: $JOURNAL_STREAM names its device and inode."""
    try:
        device, inode = map(int, environment.get("JOURNAL_STREAM", "").split(":"))
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


def message_id(event: str) -> str:
    """What MESSAGE_ID all entries of one event have: the same for ever, on every host."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"urn:scaivault:log:{event}").hex


def datagram(entry: Mapping[str, Any]) -> bytes:
    """An entry as the journal takes it."""
    event = str(entry.get("event", ""))
    fields = {
        "MESSAGE": message(entry),
        "PRIORITY": str(_PRIORITIES.get(str(entry.get("level")), 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "MESSAGE_ID": message_id(event),
    }
    for name, value in entry.items():
        if name not in ("level", "ts") and value is not None:
            fields[_field(name)] = _text(value)
    return b"".join(_encoded(name, value) for name, value in fields.items())


def message(entry: Mapping[str, Any]) -> str:
    """An entry as one reads it: what happened, to what, and in words."""
    parts = [str(entry.get("event", ""))]
    parts += [f"{name}={_text(value)}" for name, value in entry.items() if name not in _UNSAID and value is not None]
    text = " ".join(parts)
    if detail := entry.get("detail"):
        text += f": {_text(detail)}"
    if exception := entry.get("exception"):
        text += f"\n{exception}"
    return text


class JournalLogger:
    """What structlog writes its entries to; where there is no journal they go to a stream, as JSON lines."""

    def __init__(self, fallback: TextIO, path: Path = SOCKET) -> None:
        self._fallback = fallback
        self._path = str(path)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Send one entry; never raises."""
        try:
            self._send(datagram(entry))
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                self._fallback.write(json.dumps(entry, default=str) + "\n")
                self._fallback.flush()

    debug = info = warning = error = critical = exception = fatal = msg = write

    def _send(self, content: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # The journal reads fast; a full queue delays us for a moment, a dead one must not for ever.
            sender.settimeout(1.0)
            try:
                sender.sendto(content, self._path)
            except OSError as error:
                if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                self._send_file(sender, content)

    def _send_file(self, sender: socket.socket, content: bytes) -> None:
        """What no datagram takes goes as a sealed file in memory."""
        descriptor = os.memfd_create(IDENTIFIER, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(content)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            sender.sendmsg([b""], rights, 0, self._path)
        finally:
            os.close(descriptor)


def _field(name: str) -> str:
    """SCAIVAULT_ and the name, as far as it may be a field's."""
    known = _NAMES.get(name, name.upper())
    return f"SCAIVAULT_{_FIELD.sub('_', known)}"[:_FIELD_MAX]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return json.dumps(value, default=str)


def _encoded(name: str, value: str) -> bytes:
    content = value.encode("utf-8", "replace")
    if b"\n" in content:
        return name.encode() + b"\n" + struct.pack("<Q", len(content)) + content + b"\n"
    return name.encode() + b"=" + content + b"\n"
