"""Secrets planted in a daemon, and the search for them, in every spelling, wherever they must not be."""

from __future__ import annotations

import base64
import quopri
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

PIECE_MIN = 12
"""Shorter pieces of Base64 would be found by chance."""


@dataclass(frozen=True)
class Canary:
    """One secret with its spellings."""

    name: str
    needles: frozenset[bytes]

    def is_in(self, data: bytes) -> bool:
        return any(needle in data for needle in self.needles)


def of_text(name: str, text: str | bytes) -> Canary:
    """A token, a passphrase, a password: as it is, and as encoders would write it."""
    raw = text.encode() if isinstance(text, str) else text
    assert len(raw) >= PIECE_MIN, name
    return Canary(name, frozenset({raw, quote(raw, safe="").encode(), quopri.encodestring(raw), *_encoded(raw)}))


def of_key(name: str, pem: str) -> Canary:
    """A private key: its secret numbers raw, in hex, in JWKs, and in the lines of every PEM there is of it."""
    key = serialization.load_pem_private_key(pem.encode(), None)
    needles: set[bytes] = set()
    for number in _secret_numbers(key):
        needles |= {number, *_encoded(number)}
        for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
            der = key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption())
            needles |= {der, *_lines(der, number)}
    return Canary(name, frozenset(needles))


def _secret_numbers(key: object) -> Iterator[bytes]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        yield key.private_numbers().private_value.to_bytes(key.key_size // 8, "big")
    elif isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        for number in (numbers.d, numbers.p, numbers.q):
            yield number.to_bytes((number.bit_length() + 7) // 8, "big")
    else:
        raise TypeError(f"no secret numbers of {type(key)}")


def _encoded(raw: bytes) -> Iterator[bytes]:
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    for shift, start in ((0, 0), (1, 2), (2, 3)):
        # Within other bytes Base64 falls three ways; the ends depend on the neighbours.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(bytes(shift) + raw).rstrip(b"=")
            inner = text[start : len(text) - (1 if (shift + len(raw)) % 3 else 0)]
            yield inner


def _lines(der: bytes, number: bytes) -> Iterator[bytes]:
    """What a PEM has of the number, line by line; the rest of these lines is public, or the same in every key."""
    offset = der.index(number)
    text = base64.b64encode(der)
    first, last = -(-offset // 3) * 4, (offset + len(number)) // 3 * 4
    for line in range(0, len(text), 64):
        piece = text[max(line, first) : min(line + 64, last)]
        if len(piece) >= PIECE_MIN:
            yield piece


@dataclass
class Search:
    """What was planted, what was heard, and who was meant to hear it."""

    planted: dict[str, Canary] = field(default_factory=dict)
    heard: list[tuple[str, bytes, frozenset[str]]] = field(default_factory=list)

    def plant(self, canary: Canary) -> None:
        assert canary.name not in self.planted
        self.planted[canary.name] = canary

    def hear(self, where: str, data: bytes, *meant: str) -> None:
        """Keep what came out of the daemon; `meant` are the secrets that it is the answer to."""
        self.heard.append((where, data, frozenset(meant)))

    def read(self, folder: Path, exempt: dict[str, str]) -> None:
        """Keep every file below a folder but those that hold a secret for a reason (a pattern, and the reason)."""
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not any(name.match(pattern) for pattern in exempt):
                self.hear(f"file {name}", path.read_bytes())

    def hear_process(self, pid: int) -> None:
        """Keep what every user of the host can see of a process, and what its own user can."""
        for name in ("cmdline", "environ"):
            self.hear(name, Path(f"/proc/{pid}/{name}").read_bytes())

    def leaks(self) -> list[str]:
        """Every secret that was found where it was not meant, by name."""
        return [f"{canary.name} in {where}" for where, canary in self._found()]

    def _found(self) -> Iterable[tuple[str, Canary]]:
        for where, data, meant in self.heard:
            for canary in self.planted.values():
                if canary.name not in meant and canary.is_in(data):
                    yield where, canary
