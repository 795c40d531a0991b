"""The start: every certificate found, page by page, and those from before there were renewals provided for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from scaivaultd.acme.ari import certificate_id_for_ari
from scaivaultd.model.ids import AccountId, CertificateId
from scaivaultd.model.resources import Renewal
from scaivaultd.model.storage import Put
from scaivaultd.services import renewals
from scaivaultd.services.documents import CERTIFICATES, RENEWALS
from tests.fakes.renewals import RenewalRig, SteppedClock, rig_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.fakes.scripted_ca import Issuer

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ID = CertificateId("cert_1")


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def rig(make_world: Callable[..., Any], clock: SteppedClock) -> AsyncIterator[RenewalRig]:
    async with rig_over(make_world, clock) as rig:
        yield rig


def renewal(number: int, **changes: Any) -> Renewal:
    return Renewal(
        **{
            "certificate_id": CertificateId(f"cert_{number:06d}"),
            "account_id": AccountId("acme_1"),
            "version": 1,
            "not_before": BEGIN,
            "not_after": BEGIN + 90 * DAY,
            "auto_renew": True,
            "looked_at": BEGIN,
            "fraction": 0.0,
            "ari_id": "a.b",
            **changes,
        }
    )


async def put(rig: RenewalRig, documents: Sequence[Renewal]) -> None:
    for first in range(0, len(documents), 400):
        await rig.world.sqlite.commit([RENEWALS.put(each) for each in documents[first : first + 400]])


async def test_the_next_look_of_many_is_that_of_the_earliest(rig: RenewalRig) -> None:
    """More documents than one page holds; none is lost at its edges."""
    await put(rig, [renewal(number, not_after=BEGIN + (90 + number % 7) * DAY) for number in range(1999, 0, -1)])
    await put(rig, [renewal(1000000, not_after=BEGIN + 30 * DAY)])
    await rig.renewing.resume()
    assert rig.renewing.next_look_at == (BEGIN + 20 * DAY).timestamp()
    assert rig.world.said("renewal.resumed")[0]["certificates"] == 2000


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"poll_at": BEGIN + DAY},
        {"poll_at": BEGIN + 80 * DAY},
        {"poll_at": BEGIN + DAY, "is_stopped": True},
        {"auto_renew": False},
        {"auto_renew": False, "poll_at": BEGIN + DAY},
        {"order_id": "acme_order_1"},
        {"next_try_at": BEGIN + 5 * DAY},
        {"next_try_at": BEGIN + 89 * DAY},
        {"is_due": True},
        {"looked_at": BEGIN + 100 * DAY, "auto_renew": False},
        {"not_before": BEGIN - 80 * DAY, "not_after": BEGIN + 10 * DAY},
    ],
)
async def test_the_start_finds_the_same_moment_as_a_look(rig: RenewalRig, changes: dict[str, Any]) -> None:
    """It takes a short cut for most."""
    document = renewal(1, **changes)
    believed = document if not changes.get("is_stopped") else renewal(1, is_stopped=True)
    if document.poll_at is not None and document.poll_at > BEGIN + DAY:
        believed = renewal(1, poll_at=BEGIN)
    expected = BEGIN if document.order_id else renewals.next_look_at(believed, BEGIN)
    await put(rig, [document])
    await rig.renewing.resume()
    assert rig.renewing.next_look_at == (None if expected is None else expected.timestamp())


async def test_what_is_told_of_during_the_start_is_looked_at_at_once(rig: RenewalRig) -> None:
    """Orders go on before the scan is through, and their news must not be put off by what it read before."""
    await put(rig, [renewal(1)])
    rig.renewing.changed(CertificateId("cert_000001"))
    await rig.renewing.resume()
    assert rig.renewing.next_look_at == 0.0


async def test_certificates_of_an_older_store_are_renewed_too(rig: RenewalRig, issuer: Issuer) -> None:
    """They were promised it, and the upgrade asks nothing of anybody; ARI included."""
    pem = issuer.certificate.public_bytes(serialization.Encoding.PEM).decode()
    for number in range(250):
        await rig.add(f"cert_{number}", with_renewal=False, chain_pem="garbage" if number else pem)
    await rig.start()
    assert {(await rig.renewal(f"cert_{number}")).version for number in range(250)} == {1}
    with_ari = [number for number in range(250) if (await rig.renewal(f"cert_{number}")).ari_id is not None]
    expected = certificate_id_for_ari(x509.load_pem_x509_certificate(pem.encode()))
    assert with_ari == ([] if expected is None else [0])
    await rig.forward(61 * DAY)
    assert len(set(rig.issuing.ordered())) == 250


async def test_certificates_of_an_older_store_are_found_by_serial_number(rig: RenewalRig) -> None:
    """They were written when nobody looked for them by that."""
    certificate = await rig.add(with_renewal=False)
    held = await rig.world.read(CERTIFICATES, certificate.id)
    plain = msgspec.structs.replace(CERTIFICATES.put(held.value, held.revision), index={})
    await rig.world.sqlite.commit([plain])
    where = {"serial": certificate.serial_number}
    assert (await CERTIFICATES.page(rig.world.sqlite, where=where, cursor=None, limit=2)).items == ()
    await rig.start()
    found = await CERTIFICATES.page(rig.world.sqlite, where=where, cursor=None, limit=2)
    assert [each.value.id for each in found.items] == [certificate.id]


async def test_an_older_store_is_read_through_once(rig: RenewalRig) -> None:
    """Reading every certificate at every start would cost seconds."""
    await rig.add()
    await rig.start()
    await rig.die()
    scanned: list[str] = []
    scan = rig.world.sqlite.scan

    async def watched(prefix: str, **options: Any) -> Any:
        scanned.append(prefix)
        return await scan(prefix, **options)

    rig.world.store.scan = watched
    await rig.start()
    assert scanned == ["renewal/"]


async def test_a_kill_in_the_middle_of_an_upgrade_loses_and_doubles_nothing(rig: RenewalRig) -> None:
    """The mark that it is done comes last."""
    for number in range(250):
        await rig.add(f"cert_{number:03d}", with_renewal=False)
    commits = 0

    async def before_commit(_: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == 2:
            raise RuntimeError("killed")

    rig.world.store.before_commit = before_commit
    with pytest.raises(RuntimeError, match="killed"):
        await rig.renewing.resume()
    before = await rig.renewal("cert_000")
    await rig.die()
    await rig.start()
    assert await rig.renewal("cert_000") == before
    assert (await rig.renewal("cert_249")).version == 1


async def test_a_version_that_comes_during_an_upgrade_keeps_its_renewal(rig: RenewalRig) -> None:
    """Orders go on while the store is read."""
    certificate = await rig.add(with_renewal=False)
    await rig.add("cert_2", with_renewal=False)

    async def before_commit(_: Any) -> None:
        rig.world.store.before_commit = None
        begun = renewals.begun(certificate, None, now=BEGIN, fraction=0.75)
        await rig.world.sqlite.commit([RENEWALS.put(begun)])

    rig.world.store.before_commit = before_commit
    await rig.renewing.resume()
    assert (await rig.renewal()).fraction == 0.75
    assert (await rig.renewal("cert_2")).version == 1


async def test_a_certificate_that_does_not_decode_stops_nothing(rig: RenewalRig) -> None:
    """The others are provided for, and the log names it."""
    await rig.world.sqlite.commit([Put(key=CERTIFICATES.key("cert_0"), document=b"{")])
    await rig.add(with_renewal=False)
    await rig.renewing.resume()
    assert (await rig.renewal()).version == 1
    assert [each["key"] for each in rig.world.said("document.unreadable")] == ["certificate/cert_0"]


async def test_a_hundred_thousand_are_taken_in_and_cost_nothing_while_they_wait(rig: RenewalRig) -> None:
    """How long it takes is for the benches; that each is there and none is touched, for here."""
    await put(rig, [renewal(number, not_after=BEGIN + 90 * DAY + number * DAY / 1000) for number in range(100_000)])
    await rig.start()
    assert rig.world.said("renewal.resumed")[0]["certificates"] == 100_000
    rig.clock.slept.clear()
    await rig.forward(20 * DAY)
    assert rig.issuing.orders == []
    assert len(rig.clock.slept) <= 3
