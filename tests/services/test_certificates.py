"""What callers get to see of a certificate: record, each part of the PEM, and the key that fits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import CaUnavailable, Internal, InvalidRequest, NotFound
from scaivaultd.model.resources import RenewalPoint, RenewalWindow
from scaivaultd.model.storage import Delete
from scaivaultd.services.certificates import Certificates
from scaivaultd.services.documents import ACCOUNTS, CERTIFICATES, KEYS, RENEWALS

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
    assert reply.private_key_pem is not None
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
    with pytest.raises(InvalidRequest) as caught:
        await certificates.list(m.ListCertificates(domain="not a name"), CONTEXT)
    assert [each.pointer for each in caught.value.fields] == ["/domain"]


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


async def renewed(world: Any, certificate_id: str) -> None:
    """One version more."""
    world.clock.advance(3600)
    await world.ended((await world.issuing.renew(certificate_id, "request")).id)


async def test_every_version_stays_fetchable_with_its_key(world: Any, certificates: Certificates) -> None:
    """Whoever has not fetched the new one yet still serves the old one, and needs its key after a restart."""
    order = await world.issue()
    first = await certificates.pem(m.CertificatePem(id=order.certificate_id), CONTEXT)
    await renewed(world, order.certificate_id)
    current = await certificates.pem(m.CertificatePem(id=order.certificate_id), CONTEXT)
    assert (first.version, current.version) == (1, 2)
    for version, pem in ((1, first.pem), (2, current.pem)):
        shown = await certificates.pem(m.CertificatePem(id=order.certificate_id, version=version), CONTEXT)
        assert (shown.version, shown.pem) == (version, pem)
        key = await certificates.key(m.CertificateKey(id=order.certificate_id, version=version), CONTEXT)
        private = serialization.load_pem_private_key((key.private_key_pem or "").encode(), None)
        assert private.public_key() == x509.load_pem_x509_certificate(pem.encode()).public_key()
        assert key.version == version
    assert [each["version"] for each in world.said("certificate.key_read")] == [1, 2]


async def test_a_key_that_is_not_the_certificates_is_not_handed_out(world: Any, certificates: Certificates) -> None:
    """Whoever can write the store could make a right to read one key a right to read every key, an account's too."""
    order, other = await world.issue("a.example.test"), await world.issue("b.example.test")
    mine = await CERTIFICATES.get(world.store, order.certificate_id)
    others = await CERTIFICATES.get(world.store, other.certificate_id)
    account = await ACCOUNTS.get(world.store, order.account_id)
    assert mine and others and account
    for key_id in (others.value.key_id, account.value.key_id):
        await world.store.commit([CERTIFICATES.put(msgspec.structs.replace(mine.value, key_id=key_id), None)])
        with pytest.raises(Internal, match="is not the key of"):
            await certificates.key(m.CertificateKey(id=mine.value.id), CONTEXT)
    assert not world.said("certificate.key_read")


async def test_a_version_that_never_was_is_not_found(world: Any, certificates: Certificates) -> None:
    """The answer says which is the current one."""
    order = await world.issue()
    with pytest.raises(NotFound, match="no version 2; its current one is 1"):
        await certificates.pem(m.CertificatePem(id=order.certificate_id, version=2), CONTEXT)
    with pytest.raises(NotFound):
        await certificates.key(m.CertificateKey(id=order.certificate_id, version=10**12), CONTEXT)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
async def test_versions_are_paged_oldest_first_and_the_current_one_comes_last(
    world: Any, certificates: Certificates, limit: int
) -> None:
    """Whatever the size of a page, each version comes once; those of other certificates do not."""
    order, other = await world.issue("a.example.test"), await world.issue("b.example.test")
    for certificate_id in (order.certificate_id, other.certificate_id, order.certificate_id):
        await renewed(world, certificate_id)
    seen: list[m.VersionReply] = []
    cursor: str | None = None
    while True:
        page = await certificates.versions(m.ListVersions(id=order.certificate_id, limit=limit, cursor=cursor), CONTEXT)
        assert len(page.items) <= limit
        seen += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert [(each.version, each.is_current) for each in seen] == [(1, False), (2, False), (3, True)]
    assert len({each.serial_number for each in seen}) == 3
    assert {each.id for each in seen} == {order.certificate_id}
    assert all(each.has_private_key and each.domains == ["a.example.test"] for each in seen)


async def test_a_version_that_comes_while_a_page_is_read_is_not_shown_twice(
    world: Any, certificates: Certificates
) -> None:
    """Two reads are no snapshot; what was current when the page began stays so for that page."""
    order = await world.issue()

    async def renew(key: str) -> None:
        if key == f"certificate/{order.certificate_id}":
            world.store.after_get = None
            await renewed(world, order.certificate_id)

    world.store.after_get = renew
    page = await certificates.versions(m.ListVersions(id=order.certificate_id), CONTEXT)
    assert [(each.version, each.is_current) for each in page.items] == [(1, True)]


async def test_the_versions_of_nothing_are_not_found(world: Any, certificates: Certificates) -> None:
    """An empty list would say that there is a certificate without versions."""
    with pytest.raises(NotFound):
        await certificates.versions(m.ListVersions(id="cert_none"), CONTEXT)


async def test_a_certificate_is_found_by_state_account_and_serial_number(
    world: Any, certificates: Certificates
) -> None:
    """A serial number comes from a browser, a log or an audit, each with its own spelling."""
    order, _ = await world.issue("a.example.test"), await world.issue("b.example.test")
    serial = (await certificates.get(m.CertificateById(id=order.certificate_id), CONTEXT)).serial_number

    async def found(**filters: Any) -> list[str]:
        return [each.id for each in (await certificates.list(m.ListCertificates(**filters), CONTEXT)).items]

    for spelling in (serial, serial.lower(), serial.replace(":", ""), f"0x{serial.replace(':', '')}"):
        assert await found(serial_number=spelling) == [order.certificate_id]
    assert len(await found(status="valid")) == len(await found(account_id=order.account_id)) == 2
    assert await found(status="valid", serial_number=serial, domain="a.example.test") == [order.certificate_id]
    assert await found(status="revoked") == await found(account_id="acme_x") == await found(serial_number="01") == []
    assert await found(serial_number=serial, domain="b.example.test") == []
    with pytest.raises(InvalidRequest) as caught:
        await found(serial_number="no serial")
    assert caught.value.fields[0].pointer == "/serial_number"


async def test_the_record_shows_the_renewal_and_what_the_next_order_asks_for(
    world: Any, certificates: Certificates
) -> None:
    """When it comes and what it will be are the two questions of whoever plans for it."""
    order = await world.issue()
    held = await world.read(RENEWALS, order.certificate_id)
    window = RenewalWindow(start=world.clock.now() + timedelta(days=50), end=world.clock.now() + timedelta(days=52))
    point = RenewalPoint(window=window, moment=window.start + timedelta(hours=5))
    changed = msgspec.structs.replace(held.value, point=point, explanation_url="https://ca.test/why")
    await world.sqlite.commit([RENEWALS.put(changed, held.revision)])
    shown = await certificates.get(m.CertificateById(id=order.certificate_id), CONTEXT)
    assert shown.renewal is not None
    assert shown.terms is not None
    assert shown.renewal.moment == point.moment
    assert (shown.renewal.window_start, shown.renewal.window_end) == (window.start, window.end)
    assert shown.renewal.explanation_url == "https://ca.test/why"
    assert (shown.renewal.order_id, shown.renewal.attempt, shown.renewal.is_stopped) == (None, 0, False)
    assert (shown.terms.domains, shown.terms.account_ids) == (["a.example.test"], [order.account_id])
    assert (shown.terms.has_csr, shown.has_private_key, shown.revocation) == (False, True, None)
    assert shown.issued_at is not None
    (listed,) = (await certificates.list(m.ListCertificates(), CONTEXT)).items
    assert listed == shown


async def test_while_an_order_is_under_way_there_is_no_moment(world: Any, certificates: Certificates) -> None:
    """The order is named instead: there is nothing to wait for."""
    order = await world.issue()
    world.ca.script["new_order"].append(CaUnavailable("down"))
    under_way = await world.issuing.renew(order.certificate_id, "request")
    renewal = (await certificates.get(m.CertificateById(id=order.certificate_id), CONTEXT)).renewal
    assert renewal is not None
    assert (renewal.moment, renewal.order_id) == (None, under_way.id)
    await world.idle()


async def test_a_certificate_of_an_older_store_is_shown_without_its_renewal(
    world: Any, certificates: Certificates
) -> None:
    """Nothing may hide a certificate because a document beside it is not there yet."""
    order = await world.issue()
    await world.sqlite.commit([Delete(key=RENEWALS.key(order.certificate_id))])
    shown = await certificates.get(m.CertificateById(id=order.certificate_id), CONTEXT)
    assert shown.renewal is None


async def test_the_key_of_a_callers_csr_was_never_here(world: Any, certificates: Certificates) -> None:
    """That is what a CSR is for; the text says so, since a missing key looks like damage."""
    order = await world.issue()
    held = await world.read(CERTIFICATES, order.certificate_id)
    await world.sqlite.commit([CERTIFICATES.put(msgspec.structs.replace(held.value, key_id=None), held.revision)])
    with pytest.raises(NotFound, match="never here: its CSR came from a caller"):
        await certificates.key(m.CertificateKey(id=order.certificate_id), CONTEXT)
    assert not (await certificates.get(m.CertificateById(id=order.certificate_id), CONTEXT)).has_private_key
    page = await certificates.versions(m.ListVersions(id=order.certificate_id), CONTEXT)
    assert [each.has_private_key for each in page.items] == [False]
