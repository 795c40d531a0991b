"""Certificates that do not lapse: the real daemon, certificates of seconds, and a CA that notes every violation."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaivaultd.demo.ca_misbehaviour import Status
from scaivaultd.demo.ca_settings import CaSettings, Profile
from scaivaultd.demo.process import free_port, until

SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
MakeCa = Callable[..., Awaitable[Any]]
MakeDaemon = Callable[..., Awaitable[Any]]


@pytest.fixture
def port() -> int:
    return free_port()


async def _version(daemon: Any, certificate_id: str, version: int, seconds: float = 60) -> Any:
    """The certificate once it has that version."""
    async with asyncio.timeout(seconds):
        while True:
            certificate = await daemon.ask("pki.certificates.get", id=certificate_id)
            if certificate["version"] >= version:
                return certificate
            await asyncio.sleep(0.05)


async def _life(daemon: Any, certificate_id: str) -> list[tuple[str, int]]:
    """Each event of the certificate that made a version."""
    found = await daemon.events()
    return [
        (headers["ce-type"], body["version"])
        for _, headers, body in found
        if body.get("certificate_id") == certificate_id
        and headers["ce-type"] in ("certificate.issued", "certificate.renewed")
    ]


async def test_a_short_life_is_renewed_by_itself_again_and_again(
    make_ca: MakeCa, make_daemon: MakeDaemon, port: int
) -> None:
    """With `replaces`, a fresh key and one event each; the old versions stay, and the CA has nothing to complain of."""
    ca = await make_ca(port, settings=CaSettings(lifetime=timedelta(seconds=12)))
    daemon = await make_daemon(ca)
    order = await daemon.issue(await daemon.account(ca), "a.example.test")
    certificate = await _version(daemon, order["certificate_id"], 4)
    assert certificate["status"] == "valid"
    listed = (await daemon.ask("pki.certificates.versions", id=certificate["id"]))["items"]
    serials = [each["serial_number"] for each in listed]
    assert len(set(serials)) == len(serials) >= 4
    pems = [
        (await daemon.ask("pki.certificates.pem", id=certificate["id"], version=number, part="leaf"))["pem"]
        for number in (1, 2, 3)
    ]
    keys = {x509.load_pem_x509_certificate(pem.encode()).public_key().public_bytes(*SPKI) for pem in pems}
    assert len(keys) == 3
    await daemon.events_of("certificate.renewed", 3)
    life = await _life(daemon, certificate["id"])
    assert life[:4] == [("certificate.issued", 1), *(("certificate.renewed", number) for number in (2, 3, 4))]
    assert ca.ca.violations == []
    assert await daemon.stop() == 0


async def test_no_life_lapses_through_an_outage_and_a_killed_daemon(
    make_ca: MakeCa, make_daemon: MakeDaemon, port: int
) -> None:
    """Failures are told with cause and next try; when the CA is back, so is the certificate."""
    ca = await make_ca(port, settings=CaSettings(lifetime=timedelta(seconds=40)))
    daemon = await make_daemon(ca)
    order = await daemon.issue(await daemon.account(ca), "a.example.test")
    ca.ca.misbehaviour.outages["*"] = Status(code=503)
    (_, _, failed), *_ = await daemon.events_of("certificate.renewal_failed", 1)
    assert (failed["kind"], failed["fault"], failed["attempt"]) == ("transient", "ca", 1)
    assert failed["next_try_at"] and failed["remedy"]
    await daemon.stop(signal.SIGKILL)
    await daemon.start()
    del ca.ca.misbehaviour.outages["*"]
    certificate = await _version(daemon, order["certificate_id"], 2)
    assert certificate["renewal"]["attempt"] == 0
    kinds = {headers["ce-type"] for _, headers, _ in await daemon.events()}
    assert "certificate.expired" not in kinds


async def test_renewing_by_request_brings_another_version(make_ca: MakeCa, make_daemon: MakeDaemon, port: int) -> None:
    """Once, however many ask at the same moment."""
    ca = await make_ca(port)
    daemon = await make_daemon(ca)
    order = await daemon.issue(await daemon.account(ca), "a.example.test", "b.example.test")
    replies = await asyncio.gather(
        *(daemon.ask("pki.certificates.renew", id=order["certificate_id"], wait_seconds=0) for _ in range(8))
    )
    assert len({each["order_id"] for each in replies}) == 1
    done = await daemon.finished(replies[0]["order_id"])
    assert (done["status"], done["version"], done["cause"]) == ("valid", 2, "request")
    assert (await daemon.ask("pki.certificates.renew", id="cert_none"))["code"] == "not_found"
    assert ca.ca.violations == []


async def test_a_profile_and_another_key_type(make_ca: MakeCa, make_daemon: MakeDaemon, port: int) -> None:
    """What was asked for at first is asked for again; another key type is another certificate for the same names."""
    profiles = {"short": Profile(description="six days", lifetime=timedelta(days=6))}
    ca = await make_ca(port, settings=CaSettings(profiles=profiles))
    daemon = await make_daemon(ca)
    account_id = await daemon.account(ca)
    order = await daemon.issue(account_id, "a.example.test", profile="short")
    other = await daemon.issue(account_id, "a.example.test", profile="short", key_type="ec-p384")
    assert order["certificate_id"] != other["certificate_id"]
    renewed = await daemon.ask("pki.certificates.renew", id=order["certificate_id"])
    assert (await daemon.finished(renewed["order_id"]))["profile"] == "short"
    certificate = await daemon.ask("pki.certificates.get", id=order["certificate_id"])
    assert certificate["terms"]["profile"] == "short"
    missing = await daemon.issue(account_id, "b.example.test", profile="none such")
    assert (missing["status"], "short" in missing["error"]["detail"]) == ("invalid", True)


async def test_changed_names_are_ordered_at_once(make_ca: MakeCa, make_daemon: MakeDaemon, port: int) -> None:
    """The same certificate has them in its next version."""
    ca = await make_ca(port)
    daemon = await make_daemon(ca)
    order = await daemon.issue(await daemon.account(ca), "a.example.test")
    await daemon.ask(
        "pki.certificates.update", id=order["certificate_id"], domains=["b.example.test", "c.example.test"]
    )
    certificate = await _version(daemon, order["certificate_id"], 2)
    assert sorted(certificate["domains"]) == ["b.example.test", "c.example.test"]
    assert ca.ca.violations == []


async def test_a_certificate_is_revoked_after_its_replacement(
    make_ca: MakeCa, make_daemon: MakeDaemon, port: int
) -> None:
    """By its own key, since that is compromised; the successor has another."""
    ca = await make_ca(port)
    daemon = await make_daemon(ca)
    order = await daemon.issue(await daemon.account(ca), "a.example.test")
    before = await daemon.ask("pki.certificates.get", id=order["certificate_id"])
    reply = await daemon.ask(
        "pki.revoke", 30, serial_number=before["serial_number"], reason="key_compromise", replace=True, wait_seconds=20
    )
    assert (reply["status"], reply["version"]) == ("done", 1), reply
    after = await daemon.ask("pki.certificates.get", id=order["certificate_id"])
    assert (after["version"], after["status"]) == (2, "valid")
    (_, _, revoked), *_ = await daemon.events_of("certificate.revoked", 1)
    assert (revoked["version"], revoked["reason"], revoked["origin"]) == (1, "key_compromise", "acme")
    again = await daemon.ask("pki.revoke", serial_number=before["serial_number"], reason="key_compromise")
    assert (again["status"], again["was_revoked_already"]) == ("done", True)
    assert ca.ca.violations == []


async def test_a_cancelled_order_leaves_nothing_pending(make_ca: MakeCa, make_daemon: MakeDaemon, port: int) -> None:
    """Neither here nor at the CA."""
    ca = await make_ca(port)
    ca.ca.misbehaviour.processing_hangs = True
    daemon = await make_daemon(ca)
    order = await daemon.ask(
        "pki.acme.issue", account_id=await daemon.account(ca), domains=["a.example.test"], challenge_type="http-01"
    )
    await until(lambda: _is(daemon, order["order_id"], "processing"), "the CA is at work")
    cancelled = await daemon.ask("pki.acme.orders.cancel", order_id=order["order_id"])
    assert (cancelled["status"], cancelled["error"]["code"]) == ("deactivated", "cancelled")
    assert len(await daemon.events_of("order.cancelled", 1)) == 1


async def _is(daemon: Any, order_id: str, status: str) -> bool:
    return bool((await daemon.ask("pki.acme.orders.get", order_id=order_id))["status"] == status)
