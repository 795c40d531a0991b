"""Rate limits of the development CA: counted, imposed, and lifted; who is exempt, and what a refusal says."""

from __future__ import annotations

from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.ca import RateLimit, cert_id

if TYPE_CHECKING:
    from tests.demo.conftest import Client, FakeClock, Reply

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def patient(client: Client) -> None:
    """These tests are about counting; without Retry-After nobody is too early."""
    client.ca.misbehaviour.retry_after_form = "none"


async def renewal(client: Client) -> Reply:
    """A second order for the first certificate, which it names."""
    issued = next(iter(client.ca.issued.values()))
    identifiers = [{"type": "dns", "value": "a.example.test"}]
    return await client.post("/new-order", {"identifiers": identifiers, "replaces": cert_id(issued.certificate)})


async def test_nothing_is_limited_by_itself(client: Client) -> None:
    """A load test must not run into what nobody asked for."""
    assert {(await client.order("a.example.test")).status for _ in range(50)} == {201}


async def test_orders_are_counted_by_account_in_a_window_that_slides(
    client: Client, neighbour: Client, clock: FakeClock
) -> None:
    """The third within the hour is refused until the first is an hour old; another account has its own count."""
    client.ca.limits.rules["new_orders"] = RateLimit(allowed=2, within=HOUR)
    await client.order("a.example.test")
    clock.advance(1000)
    await client.order("b.example.test")
    refused = await client.order("c.example.test")
    assert (refused.status, refused.problem, refused.headers["Retry-After"]) == (429, "rateLimited", "2600")
    assert refused.json["detail"].startswith(
        "too many new orders (2) from this account in the last 1h0m0s, retry after 2026-01-01 01:00:00 UTC: see "
    )
    assert any('/limits#new_orders>;rel="help"' in link for link in refused.headers.getall("Link"))
    await neighbour.register()
    assert (await neighbour.order("c.example.test")).status == 201
    clock.advance(2600)
    assert (await client.order("c.example.test")).status == 201
    assert (await client.order("d.example.test")).status == 429
    assert len(client.ca.orders) == 4


@pytest.mark.parametrize(
    ("kind", "names", "refused", "text"),
    [
        ("certificates_per_set", ["a.example.test"], True, "for this exact set of identifiers in the last"),
        ("certificates_per_set", ["a.example.test", "b.example.test"], False, ""),
        ("certificates_per_domain", ["z.example.test"], True, 'already issued for "example.test" in the last'),
        ("certificates_per_domain", ["a.example.net"], False, ""),
    ],
)
async def test_certificates_are_counted_when_issued(
    client: Client, kind: Any, names: list[str], refused: bool, text: str
) -> None:
    """Orders that came to nothing cost nothing here."""
    client.ca.limits.rules[kind] = RateLimit(allowed=1, within=HOUR)
    await client.order("a.example.test")
    await client.issue("a.example.test")
    reply = await client.order(*names)
    assert reply.status == (429 if refused else 201)
    if refused:
        assert text in reply.json["detail"]


async def test_failed_authorizations_are_counted_by_account_and_name(client: Client, neighbour: Client) -> None:
    """A name that fails again and again is refused before it is looked at."""
    client.ca.limits.rules["failed_authorizations"] = RateLimit(allowed=1, within=HOUR)
    await client.prove(await client.order("a.example.test"), "dns-01")
    refused = await client.order("a.example.test", "b.example.test")
    assert 'too many failed authorizations (1) for "a.example.test"' in refused.json["detail"]
    assert (await client.order("b.example.test")).status == 201
    await neighbour.register()
    assert (await neighbour.order("a.example.test")).status == 201


async def test_accounts_are_counted_in_the_whole(client: Client, neighbour: Client) -> None:
    """A known key makes none, so it is never refused."""
    client.ca.limits.rules["new_accounts"] = RateLimit(allowed=0, within=HOUR)
    assert (await client.register()).status == 200
    refused = await neighbour.register()
    assert (refused.status, refused.problem) == (429, "rateLimited")
    assert "too many new registrations (0) from this IP address" in refused.json["detail"]


@pytest.mark.parametrize(
    "kind", ["new_orders", "certificates_per_domain", "certificates_per_set", "failed_authorizations"]
)
@pytest.mark.parametrize("exempts", [True, False])
async def test_an_order_that_replaces_passes_every_limit(client: Client, kind: Any, exempts: bool) -> None:
    """As at Let's Encrypt, unless that is switched off."""
    await client.issue("a.example.test")
    client.ca.limits.impose(kind, 60)
    client.ca.limits.exempts_replaces = exempts
    passes = exempts or kind in {"new_orders", "certificates_per_domain"}
    assert (await renewal(client)).status == (201 if passes else 429)


async def test_names_certified_before_pass_two_limits(client: Client) -> None:
    """Renewals without `replaces` are exempt from the limits of new orders and of domains, not from that of the set."""
    await client.issue("a.example.test")
    client.ca.limits.impose("new_orders", 60)
    client.ca.limits.impose("certificates_per_domain", 60)
    assert (await client.order("a.example.test")).status == 201
    assert (await client.order("a.example.test", "b.example.test")).status == 429
    client.ca.limits.impose("certificates_per_set", 60)
    assert (await client.order("a.example.test")).status == 429


async def test_a_limit_can_be_imposed_and_lifted(client: Client, clock: FakeClock) -> None:
    """On demand, for all or for one; it ends by itself."""
    client.ca.limits.impose("failed_authorizations", 90, key="a.example.test")
    assert (await client.order("b.example.test")).status == 201
    assert (await client.order("a.example.test")).headers["Retry-After"] == "90"
    clock.advance(90)
    assert (await client.order("a.example.test")).status == 201
    client.ca.limits.impose("new_orders", 90)
    assert (await client.order("a.example.test")).status == 429
    client.ca.limits.lift("new_orders")
    client.ca.limits.lift("new_orders")
    assert (await client.order("a.example.test")).status == 201


@pytest.mark.parametrize("form", ["seconds", "date", "none"])
async def test_a_refusal_tells_the_time_in_every_form(client: Client, clock: FakeClock, form: Any) -> None:
    """A date is rounded up: rounded down it would call the client too early."""
    clock.advance(0.25)
    client.ca.limits.form = form
    client.ca.limits.impose("new_orders", 90)
    headers = (await client.order("a.example.test")).headers
    match form:
        case "seconds":
            assert headers["Retry-After"] == "90"
        case "date":
            assert parsedate_to_datetime(headers["Retry-After"]) == clock.now() + timedelta(seconds=90.75)
        case _:
            assert "Retry-After" not in headers


async def test_ordering_before_a_limit_has_ended_is_a_violation(client: Client, clock: FakeClock) -> None:
    """The same order again; one for other names is another matter."""
    client.ca.limits.impose("new_orders", 90)
    for name in ("a.example.test", "b.example.test", "a.example.test"):
        await client.order(name)
    assert [each.partition(":")[0] for each in client.ca.violations] == ["retry-after"]
    clock.advance(90)
    assert (await client.order("a.example.test")).status == 201
    assert len(client.ca.violations) == 1


async def test_a_paused_name_waits_for_a_human(client: Client, clock: FakeClock) -> None:
    """The problem says where to go and no time; asking on within the hour is hammering."""
    client.ca.limits.paused["a.example.test"] = "https://ca.example/unpause?jwt=x"
    refused = await client.order("a.example.test", "b.example.test")
    assert (refused.status, refused.problem, "Retry-After" in refused.headers) == (429, "rateLimited", False)
    assert refused.json["detail"].endswith("Please visit: https://ca.example/unpause?jwt=x")
    assert (await client.order("b.example.test")).status == 201
    clock.advance(60)
    await client.order("a.example.test")
    assert [each.partition(":")[0] for each in client.ca.violations] == ["hammering"]
    client.ca.limits.paused.clear()
    assert (await client.order("a.example.test")).status == 201
    client.ca.limits.paused["a.example.test"] = "https://ca.example/unpause"
    await client.order("a.example.test")
    assert len(client.ca.violations) == 1
