"""Requests for accounts that exist already: found by their key, which nobody else has."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from scaivaultd.acme.signing import AccountKey
from scaivaultd.model.errors import (
    CaRefused,
    Conflict,
    InvalidRequest,
    SecretNotFound,
)
from scaivaultd.services.documents import ACCOUNTS, KEYS
from tests.fakes.care import failing

HMAC = base64.urlsafe_b64encode(b"m" * 32).rstrip(b"=").decode()


def pem_of(key: Any, encryption: Any = None, style: str = "PKCS8") -> str:
    encoded: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        getattr(serialization.PrivateFormat, style),
        encryption or serialization.NoEncryption(),
    )
    return encoded.decode()


def thumbprint_of(key: Any) -> str:
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return AccountKey(der).thumbprint


class TestRecovery:
    """Accounts that exist at the CA already, found by their key."""

    @pytest.fixture
    def key(self) -> Any:
        return ec.generate_private_key(ec.SECP256R1())

    @pytest.fixture
    def world(self, world: Any, key: Any) -> Any:
        world.ca.accounts[thumbprint_of(key)] = "https://ca.test/account/old"
        world.secrets.values["cred:key"] = f"\n{pem_of(key, style='TraditionalOpenSSL')}\n"
        return world

    @pytest.mark.parametrize("by_path", [False, True])
    async def test_an_account_is_found_by_its_key_and_none_is_made(self, world: Any, key: Any, by_path: bool) -> None:
        """Its authorizations, limits and CAA records hang on it."""
        members = {"account_key_path": "cred:key"} if by_path else {"account_key_pem": pem_of(key)}
        account = await world.shown_account(await world.account(**members))
        assert (account.status, account.url) == ("valid", "https://ca.test/account/old")
        assert account.key_thumbprint == thumbprint_of(key)
        assert world.ca.asked("register") == []
        assert (await world.accounts.client(account)).key.thumbprint == thumbprint_of(key)
        stored = (await world.sqlite.get(KEYS.key(account.key_id))).document
        assert key.private_numbers().private_value.to_bytes(32, "big") not in stored
        assert "account.created" in await world.event_types()

    async def test_a_key_that_the_ca_does_not_know_is_a_clear_failure(self, world: Any) -> None:
        """Making another account in its place is not what was asked for."""
        error = await failing(world, account_key_pem=pem_of(ec.generate_private_key(ec.SECP384R1())))
        assert isinstance(error, CaRefused)
        assert error.problem is not None
        assert error.problem.name == "accountDoesNotExist"
        assert "no account with this key at https://ca.test/directory" in error.detail
        assert len(world.ca.accounts) == 1

    async def test_a_binding_is_not_needed_for_it(self, world: Any, key: Any) -> None:
        """The account is bound already."""
        account_id = await world.account(provider="google", directory_url=None, account_key_pem=pem_of(key))
        assert (await world.shown_account(account_id)).eab is None

    async def test_no_two_accounts_share_a_key(self, world: Any, key: Any) -> None:
        """Not even when both ask at once; a free key is one whose account has ended here."""
        members = {"account_key_pem": pem_of(key)}
        outcomes = await asyncio.gather(
            *(world.account(name=each, **members) for each in "abc"), return_exceptions=True
        )
        (account_id,) = [each for each in outcomes if isinstance(each, str)]
        refusals = [each for each in outcomes if isinstance(each, Conflict)]
        assert [field.pointer for each in refusals for field in each.fields] == ["/account_key_pem"] * 2
        assert len(refusals) == 2
        assert all(account_id in each.detail for each in refusals)
        assert await world.accounts.with_key(thumbprint_of(key)) == account_id
        elsewhere = await world.account(name="elsewhere", directory_url="https://other.test/directory", **members)
        assert elsewhere != account_id

    async def test_the_same_request_finds_the_same_account(self, world: Any, key: Any) -> None:
        """With another key, or with none, it describes another one."""
        members = {"account_key_pem": pem_of(key)}
        assert await world.account(**members) == await world.account(account_key_path="cred:key")
        other = pem_of(ec.generate_private_key(ec.SECP256R1()))
        assert isinstance(await failing(world, account_key_pem=other), Conflict)
        assert isinstance(await failing(world), Conflict)

    @pytest.mark.parametrize(
        ("key_type", "make"),
        [
            ("ec-p384", lambda: ec.generate_private_key(ec.SECP384R1())),
            ("rsa-2048", lambda: rsa.generate_private_key(65537, 2048)),
            ("rsa-2048", lambda: rsa.generate_private_key(65537, 2176)),
        ],
    )
    async def test_other_kinds_of_keys_are_taken_as_they_are(self, world: Any, key_type: str, make: Any) -> None:
        """Many old accounts have RSA keys."""
        key = make()
        world.ca.accounts[thumbprint_of(key)] = "https://ca.test/account/rsa"
        account = await world.shown_account(await world.account(account_key_pem=pem_of(key)))
        assert (await world.read(KEYS, account.key_id)).value.key_type == key_type

    @pytest.mark.parametrize(
        "pem",
        [
            "nonsense",
            "-----BEGIN PRIVATE KEY-----\nc2VjcmV0LWZyb20tYS1jYWxsZXI=\n-----END PRIVATE KEY-----",
            pem_of(ec.generate_private_key(ec.SECP521R1())),
            pem_of(ec.generate_private_key(ec.SECP256K1())),
            pem_of(rsa.generate_private_key(65537, 1024)),
            pem_of(ed25519.Ed25519PrivateKey.generate()),
            pem_of(ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"secret")),
        ],
    )
    async def test_what_cannot_sign_for_an_account_is_refused_without_repeating_it(self, world: Any, pem: str) -> None:
        """The text is a secret even where it is wrong."""
        error = await failing(world, account_key_pem=pem)
        assert isinstance(error, InvalidRequest)
        assert [each.pointer for each in error.fields] == ["/account_key_pem"]
        assert all(line not in error.detail for line in pem.splitlines())
        assert world.ca.calls == []

    async def test_a_missing_reference_is_said_at_once(self, world: Any) -> None:
        """Nothing is left behind by it."""
        error = await failing(world, account_key_path="cred:nowhere")
        assert isinstance(error, SecretNotFound)
        assert [each.pointer for each in error.fields] == ["/account_key_path"]
        assert "cred:nowhere" in error.detail
        assert await ACCOUNTS.all(world.sqlite, structlog.get_logger()) == []
