"""The journal's native protocol, against a socket that takes datagrams as journald does."""

from __future__ import annotations

import array
import io
import json
import logging
import os
import socket
import struct
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from scaivaultd import logs, logs_journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Journal:
    """Reads entries as systemd-journald does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(20)

    def entry(self) -> dict[str, str]:
        """The next entry's fields."""
        content, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        if not content:
            [(_, _, data)] = ancillary
            descriptors = array.array("i")
            descriptors.frombytes(data[:4])
            with os.fdopen(descriptors[0], "rb") as file:
                file.seek(0)
                content = file.read()
        return dict(_fields(content))

    def close(self) -> None:
        """Go away."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


def _fields(content: bytes) -> Iterator[tuple[str, str]]:
    while content:
        line, _, rest = content.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
            content = rest
        else:
            name = line
            (size,) = struct.unpack("<Q", rest[:8])
            value, content = rest[8 : 8 + size], rest[8 + size + 1 :]
        yield name.decode(), value.decode()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal."""
    there = Journal(tmp_path / "journal")
    yield there
    there.close()


def test_an_entry_has_fields_and_a_line_to_read(journal: Journal) -> None:
    """`journalctl SCAIVAULT_CERT_ID=...` finds it, and `journalctl -u scaivaultd` can be read."""
    logger = logs_journal.JournalLogger(io.StringIO(), journal.path)
    logger.write(
        {
            "event": "order.failed",
            "level": "warning",
            "ts": "2026-01-01T00:00:00Z",
            "order_id": "acme_order_1",
            "certificate_id": "cert_1",
            "names": ["a.example", "b.example"],
            "attempt": 3,
            "is_last": True,
            "nothing": None,
            "detail": "the CA says no",
        }
    )
    entry = journal.entry()
    assert entry["MESSAGE"] == (
        "order.failed order_id=acme_order_1 certificate_id=cert_1 names=a.example,b.example attempt=3 is_last=true"
        ": the CA says no"
    )
    assert entry["PRIORITY"] == "4"
    assert entry["SYSLOG_IDENTIFIER"] == "scaivaultd"
    assert uuid.UUID(entry["MESSAGE_ID"]).version == 5
    assert entry["SCAIVAULT_CERT_ID"] == "cert_1"
    assert entry["SCAIVAULT_ORDER_ID"] == "acme_order_1"
    assert entry["SCAIVAULT_EVENT"] == "order.failed"
    assert "SCAIVAULT_NOTHING" not in entry


@pytest.mark.parametrize(
    ("level", "priority"), [("critical", "2"), ("error", "3"), ("warning", "4"), ("info", "6"), ("debug", "7")]
)
def test_levels_are_the_journals_priorities(journal: Journal, level: str, priority: str) -> None:
    """`journalctl -p warning` shows what one must look at."""
    logs_journal.JournalLogger(io.StringIO(), journal.path).write({"event": "x", "level": level})
    assert journal.entry()["PRIORITY"] == priority


def test_an_event_has_one_message_id_for_ever() -> None:
    """Message catalogues and alerts refer to it."""
    assert logs_journal.message_id("order.failed") == logs_journal.message_id("order.failed")
    assert logs_journal.message_id("order.failed") != logs_journal.message_id("order.valid")


def test_nothing_can_be_smuggled_into_a_field(journal: Journal) -> None:
    """A CA's words may hold line ends; they must not make fields of their own."""
    evil = "no\nPRIORITY=0\n_UID=0"
    logs_journal.JournalLogger(io.StringIO(), journal.path).write({"event": "x", "level": "info", "detail": evil})
    entry = journal.entry()
    assert entry["SCAIVAULT_DETAIL"] == evil
    assert entry["PRIORITY"] == "6"
    assert "_UID" not in entry


def test_names_of_fields_are_made_fit(journal: Journal) -> None:
    """The journal leaves out fields whose names it does not like."""
    logs_journal.JournalLogger(io.StringIO(), journal.path).write({"event": "x", "a-b.c": 1, "z" * 90: 2})
    names = [name for name in journal.entry() if name.startswith("SCAIVAULT_")]
    assert "SCAIVAULT_A_B_C" in names
    assert max(map(len, names)) == 64


def test_what_no_datagram_takes_goes_as_a_file(journal: Journal) -> None:
    """A traceback of a megabyte is a traceback still."""
    big = "x" * 3_000_000
    logs_journal.JournalLogger(io.StringIO(), journal.path).write({"event": "x", "detail": big})
    assert journal.entry()["SCAIVAULT_DETAIL"] == big


def test_without_a_journal_lines_go_to_the_stream(tmp_path: Path) -> None:
    """A journal that is restarted must not cost a line, nor the daemon."""
    there = Journal(tmp_path / "journal")
    output = io.StringIO()
    logger = logs_journal.JournalLogger(output, there.path)
    logger.write({"event": "one"})
    assert there.entry()["SCAIVAULT_EVENT"] == "one"
    there.close()
    logger.write({"event": "two"})
    assert json.loads(output.getvalue()) == {"event": "two"}
    again = Journal(tmp_path / "journal")
    logger.write({"event": "three"})
    assert again.entry()["SCAIVAULT_EVENT"] == "three"
    again.close()


def test_the_journal_is_known_by_its_device_and_inode(tmp_path: Path) -> None:
    """stderr may have been sent elsewhere by a shell between systemd and us."""
    with (tmp_path / "stderr").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert logs_journal.is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        for other in ("", "x", f"{status.st_dev}", f"{status.st_dev}:{status.st_ino + 1}"):
            assert not logs_journal.is_journal(stream, {"JOURNAL_STREAM": other})
        assert not logs_journal.is_journal(stream, {})


def test_all_that_is_logged_goes_there_without_secrets(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Our lines and the libraries', struck like in every other format; tracebacks included."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with (tmp_path / "stderr").open("w") as stream:
            status = os.fstat(stream.fileno())
            monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
            log: Any = logs.configure("info", "auto", stream, journal.path)
            with structlog.contextvars.bound_contextvars(request_id="req_1"):
                log.info("secret.read", token="abc", names=["a"])
            logging.getLogger("library").warning("password %s", "in words")
            try:
                raise ValueError("Bearer abcdefghijklmnopqrstuvwxyz")
            except ValueError:
                log.error("it.failed", exc_info=sys.exc_info())
        first, second, third = journal.entry(), journal.entry(), journal.entry()
    finally:
        root.handlers, root.level = handlers, level
        structlog.reset_defaults()
    assert first["SCAIVAULT_REQUEST_ID"] == "req_1"
    assert first["SCAIVAULT_TOKEN"] == "<secret>"
    assert "abc" not in first["MESSAGE"]
    assert second["SCAIVAULT_LOGGER"] == "library"
    assert "ValueError" in third["MESSAGE"]
    assert "abcdefghij" not in "".join(third.values())
