"""Credentials files: read as `nsc` writes them, and good enough for a real server that trusts an operator."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats.errors
import pytest
import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scaivaultd.gateways.nats_bus import BusSettings, NatsBus
from scaivaultd.gateways.nats_credentials import CredentialsFile
from scaivaultd.gateways.nats_server import find_server
from scaivaultd.model.clock import SystemClock
from scaivaultd.model.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE = 20.0
PREFIX = {"O": 14 << 3, "A": 0, "U": 20 << 3}
SEED_PREFIX = 18 << 3


class Nkey:
    """A key pair of the NATS kind, made by hand: base32 of prefix, key and checksum."""

    def __init__(self, kind: str, fill: int) -> None:
        self._kind = PREFIX[kind]
        self._raw = bytes([fill]) * 32
        self.private = Ed25519PrivateKey.from_private_bytes(self._raw)

    @property
    def public(self) -> str:
        public = self.private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return _nkey(bytes([self._kind]) + public)

    @property
    def seed(self) -> str:
        return _nkey(bytes([SEED_PREFIX | self._kind >> 5, (self._kind & 31) << 3]) + self._raw)

    def jwt(self, subject: str, name: str, **claims: Any) -> str:
        """A NATS JWT about `subject`, signed by this key."""
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = {"jti": name, "iat": 1_700_000_000, "iss": self.public, "name": name, "sub": subject, "nats": claims}
        text = ".".join(_base64url(json.dumps(part).encode()) for part in (header, body))
        return f"{text}.{_base64url(self.private.sign(text.encode()))}"


def _nkey(content: bytes) -> str:
    checked = content + binascii.crc_hqx(content, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


OPERATOR, ACCOUNT, USER = Nkey("O", 1), Nkey("A", 2), Nkey("U", 3)
UNLIMITED = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
USER_JWT = ACCOUNT.jwt(USER.public, "daemon", type="user", version=2, subs=-1, data=-1, payload=-1, pub={}, sub={})


def creds(jwt: str = USER_JWT, seed: str = USER.seed) -> str:
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n"
        "*************************************************************\n"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "daemon.creds"
    path.write_text(creds())
    return path


def test_a_file_gives_its_jwt_and_a_signature_of_its_key(path: Path) -> None:
    """The two things a server asks for."""
    credentials = CredentialsFile(path)
    assert credentials.user_jwt() == bytearray(USER_JWT.encode())
    signature = base64.b64decode(credentials.sign("n0nce"))
    USER.private.public_key().verify(signature, b"n0nce")
    with pytest.raises(InvalidSignature):
        USER.private.public_key().verify(signature, b"other")


def test_line_ends_and_dashes_may_vary(path: Path) -> None:
    """Files travel over Windows and through secret stores."""
    path.write_text(creds().replace("\n", "\r\n").replace("-----BEGIN", "---BEGIN"))
    assert CredentialsFile(path).user_jwt() == bytearray(USER_JWT.encode())


def test_a_rotated_file_is_used_at_the_next_connection(path: Path) -> None:
    """Credentials expire; a restart must not be needed."""
    credentials = CredentialsFile(path)
    path.write_text(creds(jwt="new.jwt.text"))
    assert credentials.user_jwt() == bytearray(b"new.jwt.text")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        creds(seed="SU" + "A" * 56),
        creds(seed="not base32!"),
        creds(seed=USER.seed[:-4]),
        creds(seed=USER.public),
        creds().partition("\n\n")[0],
        creds().replace("NATS USER JWT", "SOMETHING"),
        "\u00e4" + creds(),
    ],
)
def test_what_is_no_credentials_file_stops_the_start_without_being_quoted(path: Path, text: str) -> None:
    """A mistake is found at the start, and the seed is in no message."""
    path.write_text(text)
    with pytest.raises(StartupError) as caught:
        CredentialsFile(path)
    assert str(path) in str(caught.value)
    assert USER.seed[2:20] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the reason of the system."""
    with pytest.raises(StartupError, match="No such file"):
        CredentialsFile(tmp_path / "nowhere.creds")


def test_it_prints_as_its_path(path: Path) -> None:
    """Settings are printed when somebody debugs."""
    credentials = CredentialsFile(path)
    for secret in (USER.seed, USER_JWT):
        assert secret not in repr(credentials) + str(vars(credentials))


@asynccontextmanager
async def trusting_server(folder: Path) -> AsyncIterator[str]:
    """The URL of a real nats-server that knows its users by the operator's word only."""
    account = OPERATOR.jwt(
        ACCOUNT.public,
        "account",
        type="account",
        version=2,
        limits=UNLIMITED,
        default_permissions={"pub": {}, "sub": {}},
    )
    operator = OPERATOR.jwt(OPERATOR.public, "operator", type="operator", version=2)
    config = folder / "server.conf"
    config.write_text(
        f'listen: "127.0.0.1:-1"\nports_file_dir: "{folder}"\noperator: "{operator}"\nresolver: MEMORY\n'
        f'resolver_preload: {{ {ACCOUNT.public}: "{account}" }}\n'
    )
    process = await asyncio.create_subprocess_exec(
        find_server(None), "-c", str(config), "-l", str(folder / "server.log")
    )
    try:
        async with asyncio.timeout(DEADLINE):
            while (url := _listening_at(folder)) is None:  # noqa: ASYNC110 - another process, polled
                await asyncio.sleep(0.02)
        yield url
    finally:
        process.kill()
        await process.wait()


def _listening_at(folder: Path) -> str | None:
    for file in folder.glob("*.ports"):
        with suppress(ValueError):
            url: str = json.loads(file.read_text())["nats"][0]
            return url
    return None


def bus_with(url: str, path: Path) -> NatsBus:
    log = structlog.wrap_logger(
        None, processors=[_drop], wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
    )
    return NatsBus(BusSettings(servers=(url,), credentials=CredentialsFile(path)), clock=SystemClock(), log=log)


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


async def test_a_real_server_lets_us_in_by_the_file(tmp_path: Path, path: Path) -> None:
    """The signature, the JWT and their encodings are right only if nats-server says so."""
    async with trusting_server(tmp_path) as url:
        bus = bus_with(url, path)
        async with asyncio.timeout(DEADLINE):
            await bus.connect()
            await bus.client.flush()
        assert bus.is_connected
        await bus.close(1)


@pytest.fixture
def stolen(path: Path) -> Path:
    """A good JWT with somebody else's key."""
    path.write_text(creds(seed=Nkey("U", 9).seed))
    return path


async def test_a_real_server_does_not_let_in_another_key(tmp_path: Path, stolen: Path) -> None:
    """Otherwise the test above would prove nothing."""
    async with trusting_server(tmp_path) as url:
        bus = bus_with(url, stolen)
        with suppress(nats.errors.Error, TimeoutError):
            async with asyncio.timeout(0.5):
                await bus.connect()
        assert not bus.is_connected
        await bus.close(1)
