"""What callers get to see of a certificate: record, each part of the PEM, and the key that fits."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import InvalidRequest, NotFound
from scaivaultd.model.storage import Delete
from scaivaultd.services.certificates import Certificates
from scaivaultd.services.documents import KEYS

CONTEXT = RequestContext(request_id="req_1")


@pytest.fixture
def certificates(world: Any) -> Certificates:
    service: Certificates = world.certificate_service
    return service


async def test_the_record_shows_what_was_issued(world: Any, certificates: Certificates) -> None:
    """Monitoring reads serial, names and dates from here."""
    order = await world.issue("a.example.test", "b.example.test")
    shown = await certificates.get(m.CertificateById(id=order.certificate_id), CONTEXT)
    pem = await certificates.pem(m.CertificatePem(id=order.certificate_id, part="leaf"), CONTEXT)
    leaf = x509.load_pem_x509_certificate(pem.pem.encode())
    assert int(shown.serial_number.replace(":", ""), 16) == leaf.serial_number
    assert (shown.not_before, shown.not_after) == (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    assert set(shown.domains) == {"a.example.test", "b.example.test"}
    assert shown.order_id == order.id
    assert shown.version == 1


async def test_the_parts_of_the_pem_join_to_the_whole(world: Any, certificates: Certificates) -> None:
    """Servers want leaf and chain apart or together, never one twice."""
    order = await world.issue()
    part = {
        name: (await certificates.pem(m.CertificatePem(id=order.certificate_id, part=name), CONTEXT)).pem
        for name in ("leaf", "chain", "fullchain")
    }
    assert part["leaf"] + part["chain"] == part["fullchain"]
    assert part["leaf"].count("BEGIN CERTIFICATE") == part["chain"].count("BEGIN CERTIFICATE") == 1


async def test_the_key_fits_and_each_reading_leaves_a_record(world: Any, certificates: Certificates) -> None:
    """Who read the key is asked after every incident."""
    order = await world.issue()
    reply = await certificates.key(m.CertificateKey(id=order.certificate_id), CONTEXT)
    pem = await certificates.pem(m.CertificatePem(id=order.certificate_id, part="leaf"), CONTEXT)
    private = serialization.load_pem_private_key(reply.private_key_pem.encode(), None)
    assert private.public_key() == x509.load_pem_x509_certificate(pem.pem.encode()).public_key()
    assert [each["request_id"] for each in world.said("certificate.key_read")] == ["req_1"]
    assert reply.private_key_pem not in repr(world.logged) + repr(reply)


async def test_a_certificate_is_found_by_any_spelling_of_its_name(world: Any, certificates: Certificates) -> None:
    """Callers write names as people do."""
    order = await world.issue("a.example.test")
    for spelling in ("a.example.test", "A.Example.Test."):
        listed = await certificates.list(m.ListCertificates(domain=spelling), CONTEXT)
        assert [each.id for each in listed.items] == [order.certificate_id]
    assert (await certificates.list(m.ListCertificates(domain="b.example.test"), CONTEXT)).items == []
    with pytest.raises(InvalidRequest):
        await certificates.list(m.ListCertificates(domain="not a name"), CONTEXT)


@pytest.mark.parametrize("hostile", ["cert_none", "../order/x", ""])
async def test_what_is_not_there_is_not_found(world: Any, certificates: Certificates, hostile: str) -> None:
    """Whatever the id looks like, and whichever command asks."""
    with pytest.raises(NotFound):
        await certificates.get(m.CertificateById(id=hostile), CONTEXT)
    with pytest.raises(NotFound):
        await certificates.key(m.CertificateKey(id=hostile), CONTEXT)
    with pytest.raises(NotFound):
        await certificates.pem(m.CertificatePem(id=hostile), CONTEXT)


async def test_a_missing_key_is_said_and_not_guessed(world: Any, certificates: Certificates) -> None:
    """A half-restored backup must show as such."""
    order = await world.issue()
    (certificate,) = await world.certificates()
    await world.sqlite.commit([Delete(key=KEYS.key(certificate.key_id))])
    with pytest.raises(NotFound):
        await certificates.key(m.CertificateKey(id=order.certificate_id), CONTEXT)
