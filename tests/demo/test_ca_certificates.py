"""Download and revocation at the development CA: RFC 8555 sections 7.4.2 and 7.6."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from scaivaultd.demo.ca import CaSettings, cert_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client, FakeClock


def revocation(pem: bytes, **members: Any) -> dict[str, Any]:
    der = x509.load_pem_x509_certificates(pem)[0].public_bytes(Encoding.DER)
    return {"certificate": base64.urlsafe_b64encode(der).rstrip(b"=").decode(), **members}


async def test_alternates_lead_to_their_own_roots(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Preferred chains need something to prefer."""
    async with serve(settings=CaSettings(alternates=2)) as client:
        await client.register()
        default = await client.issue("a.example.test")
        links = [link for link in default.headers.getall("Link") if 'rel="alternate"' in link]
        urls = [link.partition("<")[2].partition(">")[0] for link in links]
        assert len(urls) == len(client.ca.alternate_root_pems) == 2
        for url, root_pem in zip(urls, client.ca.alternate_root_pems, strict=True):
            alternate = await client.post(url)
            leaf, intermediate = x509.load_pem_x509_certificates(alternate.body)
            default_url = links[0].partition("<")[2].rpartition("/")[0]
            assert f'<{default_url}>;rel="alternate"' in alternate.headers.getall("Link")
            assert f'<{url}>;rel="alternate"' not in alternate.headers.getall("Link")
            assert leaf == x509.load_pem_x509_certificates(default.body)[0]
            intermediate.verify_directly_issued_by(x509.load_pem_x509_certificate(root_pem.encode()))
        assert (await client.post(f"{urls[0].rpartition('/')[0]}/3")).status == 404


async def test_the_lifetime_is_as_set(
    serve: Callable[..., AbstractAsyncContextManager[Client]], clock: FakeClock
) -> None:
    """Renewal tests want short-lived certificates."""
    async with serve(settings=CaSettings(lifetime=timedelta(hours=1))) as client:
        await client.register()
        leaf = x509.load_pem_x509_certificates((await client.issue("a.example.test")).body)[0]
        assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=1)
        assert leaf.not_valid_before_utc < clock.now() < leaf.not_valid_after_utc


async def test_a_chain_is_its_owners(client: Client, neighbour: Client) -> None:
    """POST-as-GET authenticates, so the CA can check."""
    await client.issue("a.example.test")
    await neighbour.register()
    (issued,) = client.ca.issued.values()
    assert (await neighbour.post(issued.url)).problem == "unauthorized"
    assert (await client.post(issued.url, {})).problem == "malformed"


async def test_the_owner_revokes_once(client: Client) -> None:
    """The second time it is alreadyRevoked, which clients take for success."""
    pem = (await client.issue("a.example.test")).body
    assert (await client.post("/revoke-cert", revocation(pem, reason=4))).status == 200
    assert [each.revocation_reason for each in client.ca.issued.values()] == [4]
    again = await client.post("/revoke-cert", revocation(pem))
    assert (again.status, again.problem) == (400, "alreadyRevoked")


async def test_the_certificates_key_revokes_without_an_account(client: Client, stranger: Client, make_key: Any) -> None:
    """For a key that leaked: whoever has it may end it."""
    key = make_key()
    pem = (await client.issue("a.example.test", key=key)).body
    client.kid = None
    assert (await client.post("/revoke-cert", revocation(pem, reason=1), key=make_key())).problem == "unauthorized"
    assert (await client.post("/revoke-cert", revocation(pem, reason=1), key=key)).status == 200


async def test_another_account_revokes_after_proving_all_names(client: Client, neighbour: Client) -> None:
    """A new owner of the names may end what the old one left."""
    pem = (await client.issue("a.example.test", "b.example.test")).body
    await neighbour.register()
    await neighbour.ready_order("a.example.test")
    assert (await neighbour.post("/revoke-cert", revocation(pem))).problem == "unauthorized"
    await neighbour.ready_order("b.example.test")
    assert (await neighbour.post("/revoke-cert", revocation(pem))).status == 200


@pytest.mark.parametrize("reason", [2, 6, 8, 11, "1", True, None])
async def test_reasons_are_those_of_public_cas(client: Client, reason: Any) -> None:
    """badRevocationReason, and nothing has been revoked."""
    pem = (await client.issue("a.example.test")).body
    reply = await client.post("/revoke-cert", revocation(pem, reason=reason))
    assert reply.problem == "badRevocationReason"
    assert [each.revocation_reason for each in client.ca.issued.values()] == [None]


async def test_strangers_certificates_are_not_found(client: Client, make_key: Any) -> None:
    """Only what was issued here can be revoked here."""
    mine = x509.load_pem_x509_certificates((await client.issue("a.example.test")).body)[0]
    key, name = make_key(), x509.Name([])
    forged = (
        x509.CertificateBuilder(name, name, key.public_key(), mine.serial_number)
        .not_valid_before(mine.not_valid_before_utc)
        .not_valid_after(mine.not_valid_after_utc)
        .sign(key, SHA256())
    )
    assert (await client.post("/revoke-cert", revocation(forged.public_bytes(Encoding.PEM)))).status == 404
    reply = await client.post("/revoke-cert", revocation(client.ca.issuer_root_pem.encode()))
    assert (reply.status, reply.problem) == (404, "malformed")
    assert (await client.post("/revoke-cert", {"certificate": "AAAA"})).problem == "malformed"
    assert (await client.post("/revoke-cert", {})).problem == "malformed"


async def test_reasons_are_a_setting(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Let's Encrypt takes no affiliationChanged, others do."""
    async with serve(settings=CaSettings(revocation_reasons=frozenset({0, 1, 4, 5}))) as client:
        await client.register()
        pem = (await client.issue("a.example.test")).body
        refused = await client.post("/revoke-cert", revocation(pem, reason=3))
        assert (refused.problem, refused.json["detail"]) == ("badRevocationReason", "reason 3 is none of [0, 1, 4, 5]")


@pytest.mark.parametrize(("by_client", "rules"), [(True, ["ari-ended"]), (False, [])])
async def test_who_revoked_knows(client: Client, clock: FakeClock, by_client: bool, rules: list[str]) -> None:
    """Renewal information is how others learn it, so only they may ask on."""
    client.ca.misbehaviour.retry_after_form = "none"
    pem = (await client.issue("a.example.test")).body
    ((serial, issued),) = client.ca.issued.items()
    if by_client:
        await client.post("/revoke-cert", revocation(pem))
    else:
        client.ca.revoke(serial)
    await client.request("GET", client.url(f"/renewal-info/{cert_id(issued.certificate)}"))
    assert [each.partition(":")[0] for each in client.ca.violations] == rules
    assert client.ca.issued[serial].revoked_at == clock.now()
    with pytest.raises(KeyError):
        client.ca.revoke(5)
