"""What an order may ask of the development CA beyond names: profiles, and from when to when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from scaivaultd.demo.ca import CaSettings, Profile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client, FakeClock, Reply

PROFILES = {
    "minute": Profile(
        description="for tests", lifetime=timedelta(seconds=60), most_identifiers=2, takes_addresses=False
    ),
    "years": Profile(description="for the patient", lifetime=timedelta(days=1000)),
}


@pytest.fixture
async def chooser(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> AsyncIterator[Client]:
    """A client of a CA with two profiles that honours validity."""
    async with serve(settings=CaSettings(profiles=PROFILES, honours_validity=True)) as client:
        client.ca.misbehaviour.retry_after_form = "none"
        client.ca.misbehaviour.order_ready_at_once = True
        await client.register()
        yield client


async def ordered(client: Client, *names: str, **members: Any) -> Reply:
    identifiers = [{"type": "ip" if name[0].isdecimal() else "dns", "value": name} for name in names]
    return await client.post("/new-order", {"identifiers": identifiers, **members})


async def leaf(client: Client, order: Reply) -> x509.Certificate:
    done = await client.finalize(order)
    return x509.load_pem_x509_certificates((await client.post(done.json["certificate"])).body)[0]


async def test_the_directory_describes_the_profiles(chooser: Client, serve: Any) -> None:
    """Names and descriptions; a CA without any has no such member."""
    meta = (await chooser.request("GET", chooser.ca.directory_url)).json["meta"]
    assert meta["profiles"] == {"minute": "for tests", "years": "for the patient"}
    async with serve() as plain:
        assert "profiles" not in (await plain.request("GET", plain.ca.directory_url)).json["meta"]


@pytest.mark.parametrize(("profile", "seconds"), [("minute", 60), ("years", 86_400_000), (None, 7_776_000)])
async def test_a_profile_is_shown_and_sets_the_lifetime(
    chooser: Client, clock: FakeClock, profile: str | None, seconds: int
) -> None:
    """From a minute to years, echoed in the order; without one, the CA's own."""
    order = await ordered(chooser, "a.example.test", **({"profile": profile} if profile else {}))
    assert order.json.get("profile") == profile
    assert (await chooser.post(order.location)).json.get("profile") == profile
    certificate = await leaf(chooser, order)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime == timedelta(seconds=seconds)
    assert certificate.not_valid_before_utc < clock.now() < certificate.not_valid_after_utc
    assert [each.profile for each in chooser.ca.issued.values()] == [profile]


@pytest.mark.parametrize("profile", ["hour", "", 5, None])
async def test_only_what_is_on_offer_can_be_asked_for(chooser: Client, profile: Any) -> None:
    """invalidProfile, no order, and a note: the directory says what there is."""
    reply = await ordered(chooser, "a.example.test", profile=profile)
    assert (reply.status, reply.problem) == (400, "invalidProfile")
    assert not chooser.ca.orders
    assert [each.partition(":")[0] for each in chooser.ca.violations] == ["profile"]


async def test_a_ca_without_profiles_refuses_them(client: Client) -> None:
    """A client that keeps a profile through a change of CA finds out."""
    assert (await ordered(client, "a.example.test", profile="minute")).problem == "invalidProfile"


@pytest.mark.parametrize(
    ("names", "problem"),
    [(["a.example.test", "b.example.test", "c.example.test"], "malformed"), (["192.0.2.1"], "rejectedIdentifier")],
)
async def test_a_profile_has_limits_of_its_own(chooser: Client, names: list[str], problem: str) -> None:
    """As Let's Encrypt's: how many names, and whether addresses; the CA's choice, so nobody is blamed."""
    assert (await ordered(chooser, *names, profile="minute")).problem == problem
    assert (await ordered(chooser, *names, profile="years")).status == 201
    assert not chooser.ca.violations


async def test_the_ca_can_choose_for_who_does_not(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Then the order shows what was chosen."""
    async with serve(settings=CaSettings(profiles=PROFILES, default_profile="minute")) as client:
        await client.register()
        assert (await ordered(client, "a.example.test")).json["profile"] == "minute"


async def test_validity_is_honoured_and_shown(chooser: Client) -> None:
    """As at Google: the certificate says exactly what was asked for."""
    asked = {"notBefore": "2026-01-02T00:00:00Z", "notAfter": "2026-01-05T01:00:00+01:00"}
    order = await ordered(chooser, "a.example.test", **asked)
    assert (order.json["notBefore"], order.json["notAfter"]) == ("2026-01-02T00:00:00Z", "2026-01-05T01:00:00+01:00")
    certificate = await leaf(chooser, order)
    assert certificate.not_valid_before_utc == datetime(2026, 1, 2, tzinfo=UTC)
    assert certificate.not_valid_after_utc == datetime(2026, 1, 5, tzinfo=UTC)


async def test_not_after_alone_leaves_the_beginning_to_the_ca(chooser: Client, clock: FakeClock) -> None:
    """The common case: a shorter life from now."""
    certificate = await leaf(chooser, await ordered(chooser, "a.example.test", notAfter="2026-01-02T00:00:00Z"))
    assert certificate.not_valid_before_utc <= clock.now()
    assert certificate.not_valid_after_utc == datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    "members",
    [
        {"notAfter": "2025-12-31T00:00:00Z"},
        {"notAfter": "2026-06-01T00:00:00Z"},
        {"notAfter": "2026-01-01T00:02:00Z", "profile": "minute"},
        {"notBefore": "2025-12-01T00:00:00Z"},
        {"notBefore": "2026-01-03T00:00:00Z", "notAfter": "2026-01-02T00:00:00Z"},
    ],
    ids=str,
)
async def test_validity_keeps_within_the_lifetime(chooser: Client, members: dict[str, str]) -> None:
    """Too long, in the past, or back to front: refused as the CA's choice."""
    assert (await ordered(chooser, "a.example.test", **members)).problem == "malformed"
    assert not chooser.ca.orders
    assert not chooser.ca.violations


@pytest.mark.parametrize("value", ["tomorrow", "2026-01-02T00:00:00", 5, None])
async def test_a_moment_is_written_with_its_zone(chooser: Client, value: Any) -> None:
    """RFC 3339: whatever else is the client's fault."""
    assert (await ordered(chooser, "a.example.test", notAfter=value)).problem == "malformed"
    assert [each.partition(":")[0] for each in chooser.ca.violations] == ["malformed"]


async def test_refused_validity_is_nobodys_violation(client: Client) -> None:
    """The directory does not say whether a CA honours it."""
    assert (await ordered(client, "a.example.test", notAfter="2026-01-02T00:00:00Z")).problem == "malformed"
    assert not client.ca.violations
