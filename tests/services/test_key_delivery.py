"""Sealed private keys: opened by an HPKE that is not the one which sealed them, and by the example in the guide."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import InvalidRequest, NotFound, PermissionDenied
from scaivaultd.model.principals import principal_from
from scaivaultd.services.certificates import Certificates
from scaivaultd.services.key_delivery import info_for

GUIDE = Path(__file__).parents[2] / "docs/how-to/ask-for-certificates.md"
WEB = principal_from("nats:APP/web")
KEM = b"KEM\x00\x20"
HPKE = b"HPKE\x00\x20\x00\x01\x00\x03"


def extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + key, hashlib.sha256)


def expand(suite: bytes, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(secret, labeled + b"\x01", hashlib.sha256)[:length]


def key_and_nonce(encapsulated: bytes, mine: X25519PrivateKey, info: bytes) -> tuple[bytes, bytes]:
    """RFC 9180 by hand: Decap of section 4.1, and the key schedule of section 5.1 in base mode."""
    shared_point = mine.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    eae = extract(KEM, b"", b"eae_prk", shared_point)
    shared = expand(KEM, eae, b"shared_secret", encapsulated + mine.public_key().public_bytes_raw(), 32)
    context = b"\x00" + extract(HPKE, b"", b"psk_id_hash", b"") + extract(HPKE, b"", b"info_hash", info)
    secret = extract(HPKE, shared, b"secret", b"")
    return expand(HPKE, secret, b"key", context, 32), expand(HPKE, secret, b"base_nonce", context, 12)


def opened(sealed: bytes, mine: X25519PrivateKey, info: bytes) -> bytes:
    key, nonce = key_and_nonce(sealed[:32], mine, info)
    return ChaCha20Poly1305(key).decrypt(nonce, sealed[32:], b"")


def test_the_other_hpke_is_that_of_the_rfc() -> None:
    """It opens the test vector (appendix A.2.1, sequence number 0), so it may judge ours."""
    mine = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb")
    )
    encapsulated = bytes.fromhex("1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a")
    key, nonce = key_and_nonce(encapsulated, mine, b"Ode on a Grecian Urn")
    sealed = "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28"
    text = ChaCha20Poly1305(key).decrypt(nonce, bytes.fromhex(sealed), b"Count-0")
    assert text == b"Beauty is truth, truth beauty"


def context(principal: str = "nats:APP/web", *, takes_keys: bool = False) -> RequestContext:
    return RequestContext(request_id="req_1", principal=principal_from(principal), takes_keys=takes_keys)


@pytest.fixture
def certificates(world: Any) -> Certificates:
    service: Certificates = world.certificate_service
    return service


@pytest.fixture
async def certificate_id(world: Any) -> str:
    return str((await world.issue()).certificate_id)


def encodings(key: bytes) -> list[str]:
    padded = [base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode()]
    return [*padded, *(each.rstrip("=") for each in padded)]


async def test_a_sealed_key_opens_for_its_recipient_and_is_the_plain_one(
    certificates: Certificates, certificate_id: str
) -> None:
    """By another implementation than the one that sealed it, however the public key was written."""
    plain = await certificates.key(m.CertificateKey(id=certificate_id), context(takes_keys=True))
    mine = X25519PrivateKey.generate()
    seen = set()
    for text in encodings(mine.public_key().public_bytes_raw()):
        reply = await certificates.key(m.CertificateKey(id=certificate_id, recipient_key=text), context())
        assert reply.sealed_for == f"scaivault/key-delivery/v1|{certificate_id}|1|nats:APP/web"
        assert reply.private_key_pem is None
        assert "PRIVATE KEY" not in msgspec.json.encode(reply).decode()
        pem = opened(base64.b64decode(reply.sealed_key or ""), mine, reply.sealed_for.encode())
        assert pem.decode() == plain.private_key_pem
        seen.add(reply.sealed_key)
    assert len(seen) == 4  # each with an ephemeral key of its own


def test_what_a_key_is_bound_to_names_certificate_version_and_caller() -> None:
    """Callers build it from what they know, so its form is a promise."""
    assert info_for("cert_1", 7, WEB) == "scaivault/key-delivery/v1|cert_1|7|nats:APP/web"


async def test_a_sealed_key_opens_for_nobody_and_nothing_else(certificates: Certificates, certificate_id: str) -> None:
    """Neither with another key, nor as the key of another certificate, version or caller."""
    mine = X25519PrivateKey.generate()
    request = m.CertificateKey(id=certificate_id, recipient_key=encodings(mine.public_key().public_bytes_raw())[0])
    reply = await certificates.key(request, context())
    sealed, info = base64.b64decode(reply.sealed_key or ""), reply.sealed_for or ""
    with pytest.raises(InvalidTag):
        opened(sealed, X25519PrivateKey.generate(), info.encode())
    for other in (info.replace("|1|", "|2|"), info.replace("web", "db"), info.replace(certificate_id, "cert_x")):
        with pytest.raises(InvalidTag):
            opened(sealed, mine, other.encode())


async def test_with_a_recipient_nothing_is_sent_in_plain_even_where_it_might_be(
    world: Any, certificates: Certificates, certificate_id: str
) -> None:
    """Whoever asks for a sealed key over a safe way may keep the answer in an unsafe place."""
    public = encodings(X25519PrivateKey.generate().public_key().public_bytes_raw())[0]
    request = m.CertificateKey(id=certificate_id, recipient_key=public)
    assert (await certificates.key(request, context(takes_keys=True))).private_key_pem is None
    (said,) = world.said("certificate.key_read")
    assert (said["principal"], said["is_sealed"]) == ("nats:APP/web", True)


async def test_a_key_is_not_sent_in_plain_where_others_listen(
    world: Any, certificates: Certificates, certificate_id: str
) -> None:
    """The refusal names all three ways out; whether the certificate is there is not told by it."""
    for each in (certificate_id, "cert_absent"):
        with pytest.raises(PermissionDenied) as caught:
            await certificates.key(m.CertificateKey(id=each), context())
        for way in ("inbox prefix", "recipient_key", "csr"):
            assert way in caught.value.detail
    assert world.said("certificate.key_read") == []
    with pytest.raises(NotFound):
        await certificates.key(m.CertificateKey(id="cert_absent"), context(takes_keys=True))


LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AAAA",
        base64.b64encode(bytes(range(31))).decode(),
        base64.b64encode(bytes(range(33))).decode(),
        "?" * 43,
        "A" * 42 + " ",
        "\uff21" * 43,
        bytes(range(32)).hex(),
        *(base64.b64encode(bytes.fromhex(each)).decode() for each in LOW_ORDER),
    ],
)
async def test_a_recipient_that_is_none_is_refused(world: Any, certificates: Certificates, text: str) -> None:
    """A point of low order would seal for everybody; nothing is read for such a request."""
    for takes_keys in (False, True):
        with pytest.raises(InvalidRequest) as caught:
            request = m.CertificateKey(id="cert_any", recipient_key=text)
            await certificates.key(request, context(takes_keys=takes_keys))
        assert [each.pointer for each in caught.value.fields] == ["/recipient_key"]
    assert world.said("certificate.key_read") == []


async def test_the_example_in_the_guide_fetches_a_key(certificates: Certificates, certificate_id: str) -> None:
    """It is what people copy."""
    section = GUIDE.read_text().partition("## Fetch the private key")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    example: dict[str, Any] = {}
    exec(code, example)

    async def request(subject: str, body: bytes) -> SimpleNamespace:
        assert subject == "scaivault.v1.as.Ab3dEf9h.pki.certificates.key"
        reply = await certificates.key(msgspec.json.decode(body, type=m.CertificateKey), context("token:Ab3dEf9h"))
        return SimpleNamespace(data=msgspec.json.encode(reply))

    client = SimpleNamespace(request=request)
    fetched = await example["fetch_private_key"](client, "scaivault.v1.as.Ab3dEf9h", "token:Ab3dEf9h", certificate_id)
    assert isinstance(serialization.load_pem_private_key(fetched, None), ec.EllipticCurvePrivateKey)

    async def refuse(subject: str, body: bytes) -> SimpleNamespace:
        return SimpleNamespace(data=json.dumps({"code": "not_found", "detail": "there is none"}).encode())

    with pytest.raises(RuntimeError, match="there is none"):
        await example["fetch_private_key"](SimpleNamespace(request=refuse), "r", "token:Ab3dEf9h", certificate_id)
