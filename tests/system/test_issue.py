"""A service asks over NATS and gets a certificate: the real daemon, Debian's Pebble, a real nats-server."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

pytestmark = pytest.mark.system


async def root_of(pebble: Any) -> bytes:
    """The root that Pebble made for itself when it started."""
    context = ssl.create_default_context(cafile=str(pebble.trust_file))
    url = f"https://localhost:{pebble.management_port}/roots/0"
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
        return await response.read()


async def test_a_certificate_over_nats_end_to_end(make_pebble: Any, make_daemon: Any, tmp_path: Path) -> None:
    """The main job, as its user does it; openssl judges the chain and the key."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    order = await daemon.issue(account_id, "www.example.test", "example.test")
    assert order["status"] == "valid", order
    certificate = await daemon.ask("pki.certificates.get", id=order["certificate_id"])
    assert certificate["domains"] == ["www.example.test", "example.test"]
    assert certificate["not_after"] == order["not_after"]

    pem = await daemon.ask("pki.certificates.pem", id=order["certificate_id"])
    leaf = await daemon.ask("pki.certificates.pem", id=order["certificate_id"], part="leaf")
    chain = await daemon.ask("pki.certificates.pem", id=order["certificate_id"], part="chain")
    assert pem["pem"] == leaf["pem"] + chain["pem"]
    key = await daemon.ask("pki.certificates.key", id=order["certificate_id"])
    (tmp_path / "root.pem").write_bytes(await root_of(pebble))
    for name, text in {"leaf": leaf["pem"], "chain": chain["pem"], "key": key["private_key_pem"]}.items():
        (tmp_path / f"{name}.pem").write_text(text)

    def openssl(*arguments: str) -> str:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "leaf.pem: OK" in openssl("verify", "-CAfile", "root.pem", "-untrusted", "chain.pem", "leaf.pem")
    public = openssl("x509", "-in", "leaf.pem", "-noout", "-pubkey")
    assert public == openssl("pkey", "-in", "key.pem", "-pubout")

    ((subject, headers, body),) = await daemon.events_of("certificate.issued", 1)
    assert subject == f"scaivault.events.certificate.issued.{order['certificate_id']}"
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-subject"] == order["certificate_id"]
    assert body["serial_number"] == certificate["serial_number"]
    assert await daemon.stop() == 0


async def test_two_hundred_orders_at_once(make_pebble: Any, make_daemon: Any) -> None:
    """A fleet starting up asks all at once; every one is answered, and the CA is not flooded."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    before = pebble.requests
    orders = await asyncio.gather(
        *(daemon.issue(account_id, f"h{number}.example.test", wait_seconds=0) for number in range(200))
    )
    assert {order["status"] for order in orders} == {"valid"}
    assert len({order["certificate_id"] for order in orders}) == 200
    assert (pebble.requests - before) / 200 < 12
    issued = [body["certificate_id"] for _, _, body in await daemon.events_of("certificate.issued", 200)]
    assert len(issued) == 200
    assert set(issued) == {order["certificate_id"] for order in orders}


async def test_half_the_nonces_rejected(make_pebble: Any, make_daemon: Any) -> None:
    """badNonce is weather (RFC 8555 section 6.5): it never counts as a failure."""
    pebble = await make_pebble(PEBBLE_WFE_NONCEREJECT="50")
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    orders = await asyncio.gather(*(daemon.issue(account_id, f"h{number}.example.test") for number in range(10)))
    assert [order["status"] for order in orders] == ["valid"] * 10
    assert {order["attempt"] for order in orders} == {0}


async def test_reused_authorizations_need_no_challenge(make_pebble: Any, make_daemon: Any) -> None:
    """A CA may show an authorization as valid at once; then there is nothing to answer."""
    pebble = await make_pebble(PEBBLE_AUTHZREUSE="100", PEBBLE_WFE_NONCEREJECT="5")
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    first = await daemon.issue(account_id, "a.example.test")
    again = await daemon.issue(account_id, "a.example.test")
    assert (first["status"], again["status"]) == ("valid", "valid")
    assert again["challenges"] == []


async def test_fifty_names_cost_little_more_than_two_requests_each(make_pebble: Any, make_daemon: Any) -> None:
    """The order is polled, not every authorization: CAs count requests."""
    pebble = await make_pebble(PEBBLE_VA_NOSLEEP="0", PEBBLE_VA_SLEEPTIME="3")
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    before = pebble.requests
    order = await daemon.issue(account_id, *(f"n{number}.example.test" for number in range(50)))
    assert order["status"] == "valid", order
    assert 100 < pebble.requests - before <= 125


@pytest.mark.parametrize("key_type", ["rsa-2048", "rsa-4096", "ec-p384"])
async def test_every_key_type_is_issued(make_pebble: Any, make_daemon: Any, key_type: str) -> None:
    """The key of the certificate is of the kind that was asked for."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    order = await daemon.issue(account_id, "k.example.test", key_type=key_type)
    assert order["status"] == "valid", order
    key = await daemon.ask("pki.certificates.key", id=order["certificate_id"])
    private = serialization.load_pem_private_key(key["private_key_pem"].encode(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    kind = "rsa" if isinstance(private, rsa.RSAPrivateKey) else "ec"
    assert f"{kind}-{'p' if kind == 'ec' else ''}{private.key_size}" == key_type


async def test_a_name_that_does_not_reach_us_fails_with_its_cause(make_pebble: Any, make_daemon: Any) -> None:
    """The caller learns which name, what the CA saw, and gets the same in the event."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    async with aiohttp.ClientSession() as session:
        # From now on this one name resolves to an address where nobody listens.
        await session.post(
            f"http://127.0.0.1:{pebble.dns_control_port}/add-a",
            json={"host": "lost.example.test.", "addresses": ["127.0.0.2"]},
        )
    order = await daemon.issue(account_id, "found.example.test", "lost.example.test")
    assert order["status"] == "invalid"
    assert order["error"]["code"] == "challenge_failed"
    (cause,) = order["error"]["identifiers"]
    assert cause["identifier"] == "lost.example.test"
    assert cause["type"].startswith("urn:ietf:params:acme:error:")
    assert cause["detail"]
    ((subject, _, body),) = await daemon.events_of("order.failed", 1)
    assert subject == f"scaivault.events.order.failed.{order['order_id']}"
    assert body["error"]["identifiers"] == order["error"]["identifiers"]
