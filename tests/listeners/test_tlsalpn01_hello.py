"""What is read of a ClientHello: one verdict for each, however it is cut, and never an exception."""

from __future__ import annotations

import ssl
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaivaultd.listeners.tlsalpn01_hello import Bad, Hello, HelloReader

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_BYTES = 16 * 1024
MALFORMED, TOO_LARGE, NOT_TLS = Bad("malformed"), Bad("too_large"), Bad("not_tls")
ACME = Hello("a.test", (b"acme-tls/1",))


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def sni(name: bytes) -> bytes:
    return extension(0, vector(2, b"\0" + vector(2, name)))


def alpn(*protocols: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, each) for each in protocols)))


GREASE = extension(0x0A0A, b"") + extension(0xFAFA, b"\0")
SNI, ALPN = sni(b"a.test"), alpn(b"acme-tls/1")


def message(
    extensions: bytes | None = SNI + ALPN,
    *,
    session: bytes = b"s" * 32,
    suites: bytes = b"\x3a\x3a\x13\x01",
    compression: bytes = b"\0",
    more: bytes = b"",
) -> bytes:
    body = b"\x03\x03" + b"r" * 32 + vector(1, session) + vector(2, suites) + vector(1, compression)
    if extensions is not None:
        body += vector(2, extensions)
    return b"\x01" + vector(3, body + more)


def record(data: bytes, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    return bytes((kind,)) + version + vector(2, data)


def fragmented(data: bytes, size: int) -> bytes:
    return b"".join(record(data[at : at + size]) for at in range(0, len(data), size))


def hello(extensions: bytes | None = SNI + ALPN) -> bytes:
    return record(message(extensions))


def genuine(name: str | None, protocols: Sequence[str] = (), version: ssl.TLSVersion | None = None) -> bytes:
    """What OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


HELLOS: dict[str, tuple[bytes, Hello | Bad | None]] = {
    "genuine": (genuine("a.test", ["acme-tls/1"]), ACME),
    "genuine, TLS 1.2": (genuine("a.test", ["acme-tls/1"], ssl.TLSVersion.TLSv1_2), ACME),
    "genuine, TLS 1.3": (genuine("a.test", ["acme-tls/1"], ssl.TLSVersion.TLSv1_3), ACME),
    "genuine, a browser's protocols": (genuine("a.test", ["h2", "http/1.1"]), Hello("a.test", (b"h2", b"http/1.1"))),
    "genuine, nothing asked for": (genuine(None), Hello(None, ())),
    "genuine, cut short": (genuine("a.test", ["acme-tls/1"])[:-1], None),
    "plain": (hello(), ACME),
    "no extensions": (hello(None), Hello(None, ())),
    "no extensions, but their length": (hello(b""), Hello(None, ())),
    "grease": (hello(GREASE + SNI + extension(51, bytes(40)) + ALPN), ACME),
    "grease among the protocols": (hello(SNI + alpn(b"\x0a\x0a", b"h2")), Hello("a.test", (b"\x0a\x0a", b"h2"))),
    "mixed protocols": (hello(SNI + alpn(b"h2", b"acme-tls/1")), Hello("a.test", (b"h2", b"acme-tls/1"))),
    "a name in capitals with a dot": (hello(sni(b"A.Test.") + ALPN), ACME),
    "a reverse name": (hello(sni(b"1.2.0.192.in-addr.arpa")), Hello("1.2.0.192.in-addr.arpa", ())),
    "bytes behind it": (hello() + b"\x17\x03\x03\x00\x01x", ACME),
    "no session, TLS 1.0 record": (record(message(session=b""), version=b"\x03\x00"), ACME),
    "in records of one byte": (fragmented(message(), 1), ACME),
    "in records of seven bytes": (fragmented(message(), 7), ACME),
    "large": (hello(SNI + extension(21, bytes(16_000)) + ALPN), ACME),
    "in two records, large": (fragmented(message(SNI + extension(21, bytes(12_000)) + ALPN), 8000), ACME),
    # too little, too much, something else
    "nothing": (b"", None),
    "a record's header": (hello()[:5], None),
    "a record too few": (fragmented(message(), 60)[:100], None),
    "too large": (record(message(SNI + extension(21, bytes(16_282)))), TOO_LARGE),
    "promises too much": (record(b"\x01\xff\xff\xff" + bytes(16_380)), TOO_LARGE),
    "http": (b"GET / HTTP/1.1\r\n\r\n", NOT_TLS),
    "one strange byte": (b"S", NOT_TLS),
    "sslv2": (b"\x80\x2e\x01\x00\x02" + bytes(41), NOT_TLS),
    "an alert": (record(b"\x02\x28", kind=21), NOT_TLS),
    # malformed records and messages
    "tls 2": (record(message(), version=b"\x02\x00"), MALFORMED),
    "an empty record": (record(b"") + hello(), MALFORMED),
    "an overlong record": (b"\x16\x03\x01\x40\x01", MALFORMED),
    "an alert in the middle": (record(message()[:9]) + record(b"\x01\x00", kind=21), MALFORMED),
    "a server's hello": (record(b"\x02" + message()[1:]), MALFORMED),
    "a long session": (record(message(session=bytes(33))), MALFORMED),
    "half a cipher suite": (record(message(suites=b"\x13\x01\x13")), MALFORMED),
    "no cipher suites": (record(message(suites=b"")), MALFORMED),
    "no compression": (record(message(compression=b"")), MALFORMED),
    "more behind the extensions": (record(message(more=b"\0")), MALFORMED),
    "a message without a body": (record(b"\x01\0\0\0"), MALFORMED),
    # malformed extensions
    "half an extension": (hello(b"\0\0"), MALFORMED),
    "an extension that is longer than all": (hello(b"\0\x2a\0\x09x"), MALFORMED),
    "two server names": (hello(SNI + SNI), MALFORMED),
    "two lists of protocols": (hello(ALPN + alpn(b"h2")), MALFORMED),
    "two names in one": (hello(extension(0, vector(2, (b"\0" + vector(2, b"a.test")) * 2))), MALFORMED),
    "another kind of name": (hello(extension(0, vector(2, b"\1" + vector(2, b"a.test")))), MALFORMED),
    "an empty name": (hello(sni(b"")), MALFORMED),
    "an empty server_name": (hello(extension(0, b"")), MALFORMED),
    "no name": (hello(extension(0, b"\0\0")), MALFORMED),
    "bytes behind the name": (hello(extension(0, vector(2, b"\0" + vector(2, b"a")) + b"x")), MALFORMED),
    "a nul in the name": (hello(sni(b"a.test\0.b")), MALFORMED),
    "an eight-bit name": (hello(sni(b"\xe4.test")), MALFORMED),
    "a line break in the name": (hello(sni(b"a.test\n")), MALFORMED),
    "an empty label": (hello(sni(b"a..test")), MALFORMED),
    "a long name": (hello(sni(b"a." * 127 + b"b")), MALFORMED),
    "no protocols": (hello(alpn()), MALFORMED),
    "an empty protocol": (hello(alpn(b"")), MALFORMED),
    "an empty protocol behind another": (hello(alpn(b"acme-tls/1", b"")), MALFORMED),
    "a protocol that is longer than all": (hello(extension(16, b"\0\x02\x05a")), MALFORMED),
    "bytes behind the protocols": (hello(extension(16, vector(2, b"\x01a") + b"x")), MALFORMED),
}


def read(pieces: Sequence[bytes]) -> Hello | Bad | None:
    reader = HelloReader(MOST_BYTES)
    for piece in pieces:
        verdict = reader.feed(piece)
        if verdict is not None:
            return verdict
    return None


@pytest.mark.parametrize(("data", "expected"), HELLOS.values(), ids=HELLOS)
def test_hellos_are_read_one_way(data: bytes, expected: Hello | Bad | None) -> None:
    """What is read generously here is read otherwise by the TLS library behind it."""
    assert read([data]) == expected


@pytest.mark.parametrize(("data", "expected"), HELLOS.values(), ids=HELLOS)
def test_hellos_are_read_the_same_byte_by_byte(data: bytes, expected: Hello | Bad | None) -> None:
    """TCP keeps no boundaries: a verdict that depends on them is luck."""
    assert read([data[at : at + 1] for at in range(len(data))]) == expected


def test_everything_fed_is_kept() -> None:
    """It is replayed to whoever speaks TLS with this client, byte for byte."""
    reader = HelloReader(MOST_BYTES)
    pieces = [hello()[:3], hello()[3:20], hello()[20:] + b"early data"]
    assert [reader.feed(each) for each in pieces] == [None, None, ACME]
    assert reader.raw == b"".join(pieces)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A hello of the table with some bytes overwritten, taken out or put in."""
    data = bytearray(draw(st.sampled_from([each for each, _ in HELLOS.values() if len(each) < 2000])))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@settings(deadline=None, database=None, derandomize=True, max_examples=1500)
@given(data=st.binary(max_size=400) | spoilt(), cuts=st.lists(st.integers(0, 600), max_size=5))
def test_no_bytes_break_the_reader(data: bytes, cuts: list[int]) -> None:
    """It stands in the open: every input ends in a verdict or in waiting, the same however it is cut."""
    whole = read([data])
    edges = [0, *(each for each in sorted(cuts) if each < len(data)), len(data)]
    assert read([data[start:end] for start, end in pairwise(edges)]) == whole
    if isinstance(whole, Hello):
        assert all(whole.protocols)
        assert whole.server_name is None or whole.server_name.isascii()
