"""TLS: only what is safe, and a new certificate without a dropped connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from scaivaultd.gateways.rest import RestGateway, RestLimits, RestPlaces
from scaivaultd.gateways.rest_connections import ConnectionLimits
from scaivaultd.gateways.rest_sockets import UnixSocket
from scaivaultd.gateways.rest_tls import Tls, TlsFiles
from scaivaultd.model.clock import SystemClock
from scaivaultd.model.errors import StartupError
from tests.fakes.rest import SUBJECTS, Served, head, self_signed, served, status_of
from tests.fakes.tcp import connected

if TYPE_CHECKING:
    from pathlib import Path


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def opened(here: Served, *, sni: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A connection, and the certificate it was shown."""
    host = "localhost" if sni else ""
    reader, writer = await asyncio.open_connection(*here.address, ssl=client_context(), server_hostname=host)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return reader, writer, shown


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> int:
    writer.write(data)
    return status_of(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10))


def der(files: TlsFiles) -> bytes:
    return ssl.PEM_cert_to_DER_cert(files.certificate.read_text())


def put(source: TlsFiles, target: TlsFiles) -> None:
    target.certificate.write_bytes(source.certificate.read_bytes())
    target.key.write_bytes(source.key.read_bytes())


@pytest.mark.parametrize("sni", [True, False])
async def test_a_new_certificate_is_served_without_dropping_anybody(tmp_path: Path, sni: bool) -> None:
    """Our own renewal must not cut off those who wait for theirs."""
    files, new = self_signed(tmp_path, "old"), self_signed(tmp_path, "new")
    old_der = der(files)
    async with served(tls=files) as here:
        reader, writer, shown = await opened(here, sni=sni)
        assert shown == old_der
        assert await ask(reader, writer, head(close=False)) == 200
        await reader.readuntil(b"}")
        put(new, files)
        assert here.gateway.reload()
        again, other, shown = await opened(here, sni=sni)
        assert shown == der(new)
        assert await ask(again, other, head()) == 200
        assert await ask(reader, writer, head()) == 200
        for each in (writer, other):
            each.close()
            await each.wait_closed()


@pytest.mark.parametrize("broken", ["certificate", "key"])
async def test_files_that_do_not_fit_change_nothing(tmp_path: Path, broken: str) -> None:
    """Between the writing of the one and the other they never fit."""
    files, new = self_signed(tmp_path, "old"), self_signed(tmp_path, "new")
    old_der = der(files)
    async with served(tls=files) as here:
        target = getattr(files, broken)
        target.write_bytes(getattr(new, broken).read_bytes())
        assert not here.gateway.reload()
        reader, writer, shown = await opened(here)
        assert shown == old_der
        assert await ask(reader, writer, head()) == 200
        writer.close()
        await writer.wait_closed()
    assert [each["log_level"] for each in here.capture.entries if each["event"] == "rest.tls_not_reloaded"] == ["error"]


async def test_old_versions_are_not_spoken(tmp_path: Path) -> None:
    """TLS 1.1 is over (RFC 8996)."""
    tls = Tls(self_signed(tmp_path, "a"))
    assert tls.context is not None
    assert tls.context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_that_does_not_end_ends(tmp_path: Path, begun: bytes) -> None:
    """asyncio alone would wait a minute; the handshake is part of the time for the head."""
    limits = RestLimits(connections=ConnectionLimits(head_seconds=0.2))
    async with served(tls=self_signed(tmp_path, "a"), limits=limits) as here, connected(here.address) as peer:
        if begun:
            await peer.send(begun)
        await peer.until_gone()
        assert here.gateway.connections == 0


async def test_a_flood_of_handshakes_is_within_the_number_of_connections(tmp_path: Path) -> None:
    """They cost as much as those that are through."""
    limits = RestLimits(connections=ConnectionLimits(connections=2, head_seconds=60))
    async with (
        served(tls=self_signed(tmp_path, "a"), limits=limits) as here,
        connected(here.address) as first,
        connected(here.address),
        connected(here.address),
    ):
        reader, writer, _ = await opened(here)
        assert await ask(reader, writer, head()) == 200
        await first.until_gone()
        writer.close()
        await writer.wait_closed()


async def test_plain_http_on_a_tls_port_gets_nothing(tmp_path: Path) -> None:
    """And does no harm."""
    limits = RestLimits(connections=ConnectionLimits(head_seconds=60))
    async with served(tls=self_signed(tmp_path, "a"), limits=limits) as here, connected(here.address) as peer:
        await peer.send(head())
        await peer.until_gone()
        assert here.asked == []
        assert here.gateway.connections == 0


@pytest.mark.parametrize(
    ("certificate", "key", "match"), [("no.pem", "a.key", "not there"), ("a.key", "a.key", "cannot be used")]
)
def test_files_that_cannot_be_used_are_named_at_the_start(
    tmp_path: Path, certificate: str, key: str, match: str
) -> None:
    """A daemon that starts without TLS where TLS was wanted would be worse than none."""
    self_signed(tmp_path, "a")
    with pytest.raises(StartupError, match=match):
        Tls(TlsFiles(certificate=tmp_path / certificate, key=tmp_path / key))


def pair(files: TlsFiles) -> tuple[str, str]:
    return files.certificate.read_text(), files.key.read_text()


async def test_a_managed_certificate_is_served_from_when_it_is_there(tmp_path: Path) -> None:
    """Before, nothing is said at all: a token must not go in the clear, nor to somebody with a wrong certificate."""
    first, second = self_signed(tmp_path, "first"), self_signed(tmp_path, "second")
    async with served(tls="managed") as here:
        for _ in range(3):
            async with connected(here.address) as peer:
                await peer.until_gone()
        assert [each["event"] for each in here.capture.entries].count("rest.no_certificate") == 1
        assert here.gateway.rejected == {"no_certificate": 3}
        here.gateway.use_certificate(*pair(first))
        reader, writer, shown = await opened(here)
        assert shown == der(first)
        assert await ask(reader, writer, head(close=False)) == 200
        await reader.readuntil(b"}")
        here.gateway.use_certificate(*pair(second))
        again, other, shown = await opened(here, sni=False)
        assert shown == der(second)
        assert await ask(again, other, head()) == 200
        assert await ask(reader, writer, head()) == 200
        assert not here.gateway.reload()
        for each in (writer, other):
            each.close()
            await each.wait_closed()


async def test_a_managed_certificate_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    """What is served is still better; and what is not there still serves nobody."""
    first, second = self_signed(tmp_path, "first"), self_signed(tmp_path, "second")
    async with served(tls="managed") as here:
        with pytest.raises(StartupError, match="cannot be used"):
            here.gateway.use_certificate(pair(first)[0], pair(second)[1])
        async with connected(here.address) as peer:
            await peer.until_gone()
        here.gateway.use_certificate(*pair(first))
        with pytest.raises(StartupError, match="cannot be used"):
            here.gateway.use_certificate(pair(first)[0], pair(second)[1])
        _, writer, shown = await opened(here)
        assert shown == der(first)
        writer.close()
        await writer.wait_closed()


async def test_the_unix_socket_waits_for_no_certificate(tmp_path: Path) -> None:
    """The first certificate is asked for there."""
    unix = UnixSocket(path=tmp_path / "rest.sock")
    async with served(tls="managed", unix=unix):
        reader, writer = await asyncio.open_unix_connection(unix.path)
        assert await ask(reader, writer, head()) == 200
        writer.close()
        await writer.wait_closed()


async def test_tls_lets_it_listen_beyond_loopback(tmp_path: Path) -> None:
    """And only TLS does."""
    here = Served()
    for tls, works in ((self_signed(tmp_path, "a"), True), (None, False)):
        with socket.create_server(("0.0.0.0", 0)) as bound:
            bound.setblocking(False)
            gateway = RestGateway(
                here.dispatcher(),
                RestPlaces(tcp=[bound], tls=tls),
                authenticator=here.holders,
                health=here.probe,
                subjects=SUBJECTS,
                ids=here.ids,
                clock=SystemClock(),
                log=here.log,
            )
            if works:
                await gateway.start()
                await gateway.close(0)
            else:
                with pytest.raises(StartupError, match="without TLS"):
                    await gateway.start()
