"""A real BIND on loopback: `async with Bind(folder, zones, ...) as bind`.

Several instances make a small world of their own: they share one port (`free_port`) on addresses of their own, since a
resolving `named` asks other servers at the port that it listens on (`options { port }`).

    port = free_port("127.0.0.1", "127.0.0.2", "127.0.0.3")
    root = Zone(".", zone_text("@ NS ns.root.\nns.root. A 127.0.0.1\nexample. NS ns.example.\nns.example. A 127.0.0.2"))
    zone = Zone("example", zone_text("@ NS ns\nns A 127.0.0.2"), update_policy='grant "key" zonesub TXT;')
    key = Key("key", "c2VjcmV0")
    async with (
        Bind(folder / "root", [root], addresses=["127.0.0.1"], port=port),
        Bind(folder / "example", [zone], addresses=["127.0.0.2"], port=port, keys=[key]),
        Bind(folder / "resolver", [root_hints("127.0.0.1")], addresses=["127.0.0.3"], port=port, recursion=True),
    ): ...

Needs `named` (Debian package bind9); without it starting fails with a clear text. `named` listens only at addresses
that an interface has, which of 127.0.0.0/8 is the first alone; at all others a relay answers in its stead.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

START_SECONDS = 20.0
STOP_SECONDS = 10.0
START_TRIES = 5
LOG_LINES_MAX = 20_000
OWN_ADDRESSES = ("127.0.0.1", "::1")
RELAYED_MAX = 500


class BindError(Exception):
    """`named` is missing, or does not come up; the text holds its log."""


@dataclass(frozen=True)
class Key:
    """A TSIG key; `secret` is base64."""

    name: str
    secret: str
    algorithm: str = "hmac-sha256"

    def clause(self) -> str:
        return f'key "{self.name}" {{ algorithm {self.algorithm}; secret "{self.secret}"; }};\n'


@dataclass(frozen=True)
class Zone:
    """One zone: `text` is a master file (see `zone_text`), not needed for a secondary.

    `primaries` and `also_notify` are addresses; they are taken to listen on this instance's port unless they say
    `ADDRESS port N`, and may end in `key NAME`. `update_policy` is what stands between the braces; `allow_update_key`
    lets a key change everything. `more` goes into the zone clause as it is.
    """

    name: str
    text: str = ""
    type: Literal["primary", "secondary", "hint", "forward"] = "primary"
    primaries: Sequence[str] = ()
    also_notify: Sequence[str] = ()
    allow_update_key: str | None = None
    update_policy: str | None = None
    more: str = ""

    @property
    def file_name(self) -> str:
        return f"{self.name.strip('.').replace('/', '_') or 'root'}.zone"

    def clause(self, port: int) -> str:
        lines = [f"type {self.type};"]
        if self.type != "forward":
            lines.append(f'file "{self.file_name}";')
        if self.type in ("primary", "secondary"):
            lines.append("notify explicit;" if self.also_notify else "notify no;")
        if self.primaries:
            lines.append(f"primaries {{ {_listed(self.primaries, port)} }};")
        if self.also_notify:
            lines.append(f"also-notify {{ {_listed(self.also_notify, port)} }};")
        if self.allow_update_key:
            lines.append(f'allow-update {{ key "{self.allow_update_key}"; }};')
        if self.update_policy:
            lines.append(f"update-policy {{ {self.update_policy} }};")
        return f'zone "{self.name}" {{ {" ".join([*lines, self.more])} }};\n'


def zone_text(records: str, *, serial: int = 1, ttl: int = 60, refresh: int = 3600, minimum: int = 60) -> str:
    """A master file with a SOA record ahead of `records`; NS records are the caller's."""
    soa = f"@ SOA ns.invalid. hostmaster.invalid. {serial} {refresh} 600 86400 {minimum}"
    return f"$TTL {ttl}\n{soa}\n{records}\n"


def root_hints(*addresses: str) -> Zone:
    """Where a resolving instance finds the root servers; they are called `ns.root.`"""
    lines = [f"ns.root. 3600 {'AAAA' if ':' in each else 'A'} {each}" for each in addresses]
    return Zone(".", "\n".join([". 3600 NS ns.root.", *lines, ""]), type="hint")


def free_port(*addresses: str) -> int:
    """A port that is free for UDP and TCP at all addresses; the kernel chooses."""
    for _ in range(50):
        with contextlib.ExitStack() as stack:
            port = 0
            try:
                for address in addresses or ("127.0.0.1",):
                    family = socket.AF_INET6 if ":" in address else socket.AF_INET
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        one = stack.enter_context(socket.socket(family, kind))
                        one.bind((address, port))
                        port = one.getsockname()[1]
            except OSError:
                continue
            return port
    raise BindError(f"no port is free at all of {', '.join(addresses)}")


class Bind:
    """One `named` process; `port` and `addresses` say where it answers.

    With `port` 0 it gets one of its own. `options` goes into the options clause, `more` to the end of the
    configuration, both as they are (`views` would have to hold the zones: leave those empty then).
    """

    def __init__(
        self,
        folder: Path,
        zones: Sequence[Zone] = (),
        *,
        addresses: Sequence[str] = ("127.0.0.1",),
        port: int = 0,
        keys: Sequence[Key] = (),
        recursion: bool = False,
        options: str = "",
        more: str = "",
    ) -> None:
        self.folder = folder
        self.zones = list(zones)
        self.addresses = tuple(addresses)
        self.port = port
        self.log: list[str] = []
        self._keys = tuple(keys)
        self._recursion = recursion
        self._options = options
        self._more = more
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()
        self._relays = contextlib.AsyncExitStack()
        self._back_door = 0
        self._has_ended = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        """`address:port` of the first address."""
        host = self.addresses[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> None:
        """Start, or start again after `stop`: zones keep their state (journals, transferred files)."""
        chosen = self.port
        for _ in range(START_TRIES):
            self.port = chosen or free_port(*self.addresses)
            self._back_door = free_port()
            if await self._launch():
                return
            # Somebody took the port between the choice and the start.
            await self.stop()
        raise BindError(f"named cannot listen at {self.address}:\n{self._tail()}")

    async def stop(self) -> None:
        """End the process, politely at first."""
        process, reader = self._process, self._reader
        self._process = self._reader = None
        await self._relays.aclose()
        if process is None or reader is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await reader

    async def rewrite(self, name: str, text: str) -> None:
        """Give a primary zone new text and load it; a zone that is updated dynamically must not be rewritten.

        The serial has to grow, else `named` keeps what it has.
        """
        zone = next(each for each in self.zones if each.name == name)
        (self.folder / zone.file_name).write_text(text, encoding="utf-8")
        await self.reload()

    async def reload(self) -> None:
        """Read the configuration and all zones again, and wait until they are loaded."""
        assert self._process is not None
        seen = len(self.log)
        self._process.send_signal(signal.SIGHUP)
        await self.logged(r"\ball zones loaded|any newly configured zones are now loaded", after=seen)

    async def logged(self, pattern: str, *, after: int = 0, seconds: float = START_SECONDS) -> str:
        """Wait for a line of the log that matches in any case; `after` is a length of `log` to begin at."""
        try:
            async with asyncio.timeout(seconds), self._news:
                while not (line := self._grep(pattern, after)):
                    if self._has_ended:
                        raise BindError(f"named has ended:\n{self._tail()}")
                    await self._news.wait()
                return line
        except TimeoutError:
            raise BindError(f"named did not log {pattern!r} within {seconds:.0f} s:\n{self._tail()}") from None

    async def _launch(self) -> bool:
        named = shutil.which("named", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if named is None:
            raise BindError("named is not installed; these tests need BIND (Debian: apt-get install bind9)")
        self._write()
        self.log.clear()
        self._has_ended = False
        self._process = await asyncio.create_subprocess_exec(
            named,
            *("-g", "-n", "1", "-c", str(self.folder / "named.conf")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read(self._process))
        try:
            await self.logged(r"\brunning$")
            for address in self.addresses:
                if address not in OWN_ADDRESSES:
                    await self._relays.enter_async_context(_relayed(address, self.port, self._back_door))
        except OSError:
            return False
        except BaseException:
            await self.stop()
            raise
        return not self._grep("address in use|not listening on any interfaces")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        try:
            async for line in process.stderr:
                await self._note(line.decode(errors="replace").rstrip())
        finally:
            # Who still waits for a line must learn that none will come.
            self._has_ended = True
            await self._note("(named has ended)")

    async def _note(self, line: str) -> None:
        async with self._news:
            if len(self.log) < LOG_LINES_MAX:
                self.log.append(line)
            self._news.notify_all()

    def _grep(self, pattern: str, after: int = 0) -> str:
        return next((line for line in self.log[after:] if re.search(pattern, line, re.IGNORECASE)), "")

    def _tail(self) -> str:
        return "\n".join(self.log[-40:])

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for zone in self.zones:
            path = self.folder / zone.file_name
            # A second start must not undo what updates have written.
            if zone.text and not path.exists():
                path.write_text(zone.text, encoding="utf-8")
        (self.folder / "named.conf").write_text(self._configuration(), encoding="utf-8")

    def _configuration(self) -> str:
        keys = "".join(key.clause() for key in self._keys)
        zones = "".join(zone.clause(self.port) for zone in self.zones)
        return f"{keys}{self._options_clause()}controls {{ }};\n{zones}{self._more}\n"

    def _options_clause(self) -> str:
        four = [each for each in self.addresses if ":" not in each]
        six = [each for each in self.addresses if ":" in each]
        own = [each for each in self.addresses if each in OWN_ADDRESSES]
        lines = [
            f'directory "{self.folder}"; pid-file none; session-keyfile none; lock-file none;',
            f"port {self.port};",
            f"listen-on port {self._back_door} {{ 127.0.0.1; }};",
            f"listen-on {{ {_addresses([each for each in own if ':' not in each])} }};",
            f"listen-on-v6 {{ {_addresses([each for each in own if ':' in each])} }};",
            "recursion yes; allow-recursion { any; };" if self._recursion else "recursion no;",
            "allow-query { any; }; allow-transfer { any; }; empty-zones-enable no; minimal-responses no;",
            # By default a NOTIFY waits for five seconds.
            "notify-delay 0; notify-rate 1000; startup-notify-rate 1000; serial-query-rate 1000;",
            "tcp-clients 200; max-cache-size 16m; max-ncache-ttl 60;",
        ]
        if "dnssec-validation" not in self._options:
            lines.append("dnssec-validation no;")
        if four:
            # A secondary takes a NOTIFY only from the address that it knows its primary by.
            lines.append(f"notify-source {four[0]}; transfer-source {four[0]}; query-source address {four[0]};")
        if six:
            lines.append(f"notify-source-v6 {six[0]}; transfer-source-v6 {six[0]};")
        return "options {\n  " + "\n  ".join([*lines, self._options]) + "\n};\n"


@contextlib.asynccontextmanager
async def _relayed(address: str, port: int, back_door: int) -> AsyncIterator[None]:
    """UDP and TCP from `address`:`port` to the back door. `named` sees who asks: all of 127.0.0.0/8 may be a source."""
    loop = asyncio.get_running_loop()
    transport, relay = await loop.create_datagram_endpoint(
        lambda: _DatagramRelay(back_door), local_addr=(address, port)
    )
    streams: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.add(asyncio.create_task(_relay_stream(back_door, reader, writer)))

    try:
        server = await asyncio.start_server(accept, address, port)
        try:
            yield
        finally:
            server.close()
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
    finally:
        await relay.close()
        transport.close()


class _DatagramRelay(asyncio.DatagramProtocol):
    """The front: one connected socket to the back door for each who asks, the oldest closed when there are many."""

    def __init__(self, back_door: int) -> None:
        self._back_door = back_door
        self._ways: dict[Any, asyncio.Task[asyncio.DatagramTransport]] = {}
        self._front: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # it is one
        self._front = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        way = self._ways.get(addr)
        if way is None:
            way = self._ways[addr] = asyncio.create_task(self._open(addr))
            if len(self._ways) > RELAYED_MAX:
                _close(self._ways.pop(next(iter(self._ways))))
        _when_open(way, lambda transport: transport.sendto(data))

    def reply(self, data: bytes, addr: Any) -> None:
        assert self._front is not None
        self._front.sendto(data, addr)

    async def close(self) -> None:
        ways = list(self._ways.values())
        self._ways.clear()
        for way in ways:
            _close(way)
        await asyncio.gather(*ways, return_exceptions=True)

    async def _open(self, addr: Any) -> asyncio.DatagramTransport:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Way(self, addr), local_addr=(addr[0], 0), remote_addr=("127.0.0.1", self._back_door)
        )
        return transport


class _Way(asyncio.DatagramProtocol):
    def __init__(self, relay: _DatagramRelay, addr: Any) -> None:
        self._relay = relay
        self._addr = addr

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._relay.reply(data, self._addr)


def _close(way: asyncio.Task[asyncio.DatagramTransport]) -> None:
    _when_open(way, lambda transport: transport.close())


def _when_open(way: asyncio.Task[asyncio.DatagramTransport], act: Callable[[asyncio.DatagramTransport], None]) -> None:
    def look(opened: asyncio.Task[asyncio.DatagramTransport]) -> None:
        if not opened.cancelled() and not opened.exception():
            act(opened.result())

    way.add_done_callback(look)


async def _relay_stream(back_door: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        source = writer.get_extra_info("peername")[0]
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", back_door, local_addr=(source, 0))
        try:
            await asyncio.gather(_pump(reader, back_writer), _pump(back_reader, writer))
        finally:
            back_writer.close()
    except OSError:
        pass
    finally:
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


def _addresses(addresses: Sequence[str]) -> str:
    return " ".join(f"{each};" for each in addresses) or "none;"


def _listed(entries: Sequence[str], port: int) -> str:
    return " ".join(f"{_with_port(each, port)};" for each in entries)


def _with_port(entry: str, port: int) -> str:
    address, _, rest = entry.partition(" ")
    return entry if "port " in rest else " ".join(filter(None, [address, f"port {port}", rest]))
