"""The NATS protocol as nats-server writes it, and a client that nobody's message can stop.

Subjects to reply to and headers are what their senders like: the server looks at neither. nats-py takes some of their
bytes for the ends of words, and others make it stop reading, for everybody.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.client import Client
from nats.protocol.parser import AWAITING_CONTROL_LINE, AWAITING_MSG_PAYLOAD, PERMISSIONS_ERR, Parser

from scaivaultd.gateways.nats_identity import REQUEST_INFO

if TYPE_CHECKING:
    from collections.abc import Sequence

_END = b"\r\n"
_LINE_MAX = 1 << 20
"""The server's INFO names all servers of a cluster."""


class UnreadableMessage(nats.errors.Error):
    """A message was dropped whose headers or reply subject are no text."""


class ReadingClient(Client):
    """A client that reads on whatever it hears, and can be asked what stands in `Nats-Request-Info`.

    nats-server replaces the spelling of that header that it knows, and adds its own to the end of the headers. A
    sender can write one that the server does not see but nats-py does (with a space in front of it), and leave the end
    of the headers out, so that the server's becomes part of another value.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Parser(self)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (IndexError, UnicodeError):
            await self._error_cb(UnreadableMessage(f"at {subject[:200].decode(errors='backslashreplace')}"))

    async def _process_err(self, err_msg: str) -> None:
        """What the server complains of; nats-py would close for good where it may as well come back."""
        error = nats.errors.Error("nats: " + err_msg.strip("'"))
        if PERMISSIONS_ERR in err_msg:
            await self._error_cb(error)
        else:
            await self._process_op_err(error)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        parsed = await super()._process_headers(headers)
        if parsed and REQUEST_INFO in parsed and bytes(headers).lower().count(REQUEST_INFO.lower().encode()) > 1:
            del parsed[REQUEST_INFO]
        return parsed


class _Parser(Parser):
    """Divides lines at single blanks: what else is white to a regular expression may stand in a subject."""

    async def parse(self, data: bytes = b"") -> None:
        """Take what was received.

        Raises:
            ProtocolError: no server says so; the connection is of no use any more.
        """
        self.buf.extend(data)
        while await (self._line() if self.state == AWAITING_CONTROL_LINE else self._message()):
            pass

    async def _line(self) -> bool:
        end = self.buf.find(_END)
        if end < 0:
            if len(self.buf) > _LINE_MAX:
                raise nats.errors.ProtocolError("nats: a line without an end")
            return False
        line = bytes(self.buf[:end]).rstrip(b" ")
        del self.buf[: end + len(_END)]
        try:
            await self._understand(line)
        except ValueError as error:
            raise nats.errors.ProtocolError("nats: malformed line") from error
        return True

    async def _understand(self, line: bytes) -> None:
        match line.split(b" "):
            case [b"MSG", subject, sid, size]:
                self._expect(subject, sid, b"", [b"0", size])
            case [b"MSG", subject, sid, reply, size]:
                self._expect(subject, sid, reply, [b"0", size])
            case [b"HMSG", subject, sid, header_size, size]:
                self._expect(subject, sid, b"", [header_size, size])
            case [b"HMSG", subject, sid, reply, header_size, size]:
                self._expect(subject, sid, reply, [header_size, size])
            case [b"PING"]:
                await self.nc._process_ping()
            case [b"PONG"]:
                await self.nc._process_pong()
            case [b"+OK"]:
                pass
            case [b"-ERR", *_]:
                await self.nc._process_err(line.removeprefix(b"-ERR ").decode(errors="replace").lower())
            case [b"INFO", *_]:
                await self.nc._process_info(json.loads(line.removeprefix(b"INFO ")))
            case _:
                raise nats.errors.ProtocolError("nats: unknown protocol")

    def _expect(self, subject: bytes, sid: bytes, reply: bytes, sizes: Sequence[bytes]) -> None:
        about: dict[str, Any] = {"subject": subject, "sid": int(sid), "reply": reply}
        self.msg_arg = about
        self.header_needed, self.needed = map(int, sizes)
        self.state = AWAITING_MSG_PAYLOAD

    async def _message(self) -> bool:
        if len(self.buf) < self.needed + len(_END):
            return False
        headers = bytes(self.buf[: self.header_needed])
        data = bytes(self.buf[self.header_needed : self.needed])
        del self.buf[: self.needed + len(_END)]
        self.state = AWAITING_CONTROL_LINE
        about = self.msg_arg
        await self.nc._process_msg(about["sid"], about["subject"], about["reply"], data, headers)
        return True
