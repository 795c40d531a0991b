"""Renewal information and `replaces` of the development CA: RFC 9773, rule by rule."""

from __future__ import annotations

from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from scaivaultd.demo.ca import CaSettings, Issued, LoseAnswer, Profile, RenewalPolicy, Window, cert_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client, FakeClock, Reply


def named(*names: str, **members: Any) -> dict[str, Any]:
    """A newOrder payload."""
    return {"identifiers": [{"type": "dns", "value": name} for name in names], **members}


def rules(client: Client) -> list[str]:
    return [each.partition(":")[0] for each in client.ca.violations]


def newest(client: Client) -> Issued:
    return list(client.ca.issued.values())[-1]


async def asked(client: Client, issued: Issued) -> Reply:
    base = (await client.request("GET", client.ca.directory_url)).json["renewalInfo"]
    return await client.request("GET", f"{base}/{cert_id(issued.certificate)}")


async def renew(client: Client, issued: Issued, *names: str) -> Reply:
    return await client.post("/new-order", named(*names or ("a.example.test",), replaces=cert_id(issued.certificate)))


@pytest.fixture
async def issued(client: Client) -> Issued:
    """A certificate that the client has downloaded."""
    await client.issue("a.example.test")
    client.ca.violations.clear()
    return newest(client)


def certificate(serial: int, key_identifier: str) -> Any:
    """No more of a certificate than a CertID is made of."""
    authority = x509.AuthorityKeyIdentifier(bytes.fromhex(key_identifier), None, None)
    found = SimpleNamespace(value=authority)
    return SimpleNamespace(
        serial_number=serial, extensions=SimpleNamespace(get_extension_for_class=lambda _kind: found)
    )


def test_a_cert_id_is_as_in_the_rfc() -> None:
    """The example of section 4.1, whose serial number needs a leading zero octet."""
    made = cert_id(certificate(0x87654321, "69885B6B87464041E1B37B847BA0AE2CDE01C8D4"))
    assert made == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


async def test_the_window_is_the_last_third_by_itself(client: Client, issued: Issued) -> None:
    """Without a rule of its own a test gets what public CAs suggest, and when to ask again."""
    reply = await asked(client, issued)
    window = {name: datetime.fromisoformat(value) for name, value in reply.json["suggestedWindow"].items()}
    assert window["start"] == issued.certificate.not_valid_after_utc - timedelta(days=30)
    assert window["end"] == window["start"] + timedelta(days=2)
    assert reply.headers["Retry-After"] == "21600"
    assert reply.headers["Content-Type"] == "application/json"


async def test_a_minutes_certificate_is_asked_for_often(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    """Six hours would be long after its end."""
    async with serve(settings=CaSettings(lifetime=timedelta(minutes=1))) as client:
        await client.register()
        await client.issue("a.example.test")
        assert (await asked(client, newest(client))).headers["Retry-After"] == "6"


async def test_windows_are_set_by_certificate_and_by_rule(client: Client, issued: Issued, clock: FakeClock) -> None:
    """A certificate's own window wins; both may be changed while the CA runs."""
    now = clock.now()
    own = Window(start=now, end=now + timedelta(hours=1), explanation_url="https://ca.example/why")
    general = Window(start=now + timedelta(days=1), end=now + timedelta(days=2))
    client.ca.renewal.windows[issued.serial] = own
    client.ca.renewal.rule = lambda _issued: general
    first = (await asked(client, issued)).json
    assert first == {
        "suggestedWindow": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T01:00:00Z"},
        "explanationURL": "https://ca.example/why",
    }
    client.ca.renewal.windows.clear()
    assert (await asked(client, issued)).json["suggestedWindow"]["start"] == "2026-01-02T00:00:00Z"


async def test_revocation_from_outside_moves_the_window_into_the_past(
    client: Client, issued: Issued, clock: FakeClock
) -> None:
    """The only signal that is left to clients since OCSP has gone."""
    client.ca.revoke(issued.serial, 4)
    assert (await asked(client, issued)).json["suggestedWindow"]["end"] == "2026-01-01T00:00:00Z"
    assert newest(client).revoked_at == clock.now()
    assert not client.ca.violations


@pytest.mark.parametrize("form", ["seconds", "date", "none", "garbage"])
async def test_retry_after_comes_in_every_form(client: Client, issued: Issued, form: Any) -> None:
    """RFC 9773 section 4.3.3 tells errors of the short and of the long term by it."""
    client.ca.renewal.retry_after_seconds = 90
    client.ca.renewal.retry_after_form = form
    headers = (await asked(client, issued)).headers
    match form:
        case "seconds":
            assert headers["Retry-After"] == "90"
        case "date":
            moments = [parsedate_to_datetime(headers[name]) for name in ("Retry-After", "Date")]
            assert moments[0] - moments[1] == timedelta(seconds=90)
        case "none":
            assert "Retry-After" not in headers
        case _:
            assert not headers["Retry-After"].isdecimal()


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ("end_before_start", {"start": "2026-01-01T01:00:00Z", "end": "2026-01-01T00:00:00Z"}),
        ("empty", {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}),
        ("naive", {"start": "2026-01-01T00:00:00", "end": "2026-01-01T01:00:00"}),
        ("no_end", {"start": "2026-01-01T00:00:00Z"}),
        ("not_strings", {"start": 1767225600, "end": 1767229200}),
        ("not_a_date", {"start": "2026-01-01T00:00:00Z", "end": "tomorrow"}),
        ("null", None),
        ("offset", {"start": "2026-01-01T05:30:00+05:30", "end": "2026-01-01T06:30:00+05:30"}),
        ("fraction", {"start": "2026-01-01T00:00:00.000000789Z", "end": "2026-01-01T01:00:00.000000789Z"}),
        ("extra_members", {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T01:00:00Z"}),
        ("absent", "absent"),
    ],
)
async def test_a_window_can_be_odd(client: Client, issued: Issued, clock: FakeClock, odd: Any, shown: Any) -> None:
    """Lawful spellings must be read, all others taken for no answer."""
    client.ca.renewal.windows[issued.serial] = Window(start=clock.now(), end=clock.now() + timedelta(hours=1))
    client.ca.renewal.odd = odd
    document = (await asked(client, issued)).json
    assert document.get("suggestedWindow", "absent") == shown
    assert ("comment" in document) == (odd == "extra_members")


@pytest.mark.parametrize("bend", ["unknown", "padded", "one_part", "no_zero", "two_zeros"])
async def test_only_the_one_spelling_of_a_cert_id_is_taken(client: Client, issued: Issued, bend: str) -> None:
    """Clients that pad or trim it differently from the RFC would work here and fail elsewhere."""
    good = cert_id(issued.certificate)
    bent, status = {
        "unknown": ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE", 404),
        "padded": (f"{good}=", 400),
        "one_part": (good.partition(".")[0], 400),
        "no_zero": ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.h2VDIQ", 400),
        "two_zeros": ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AABlQyE", 400),
    }[bend]
    reply = await client.request("GET", client.url(f"/renewal-info/{bent}"))
    assert (reply.status, reply.problem) == (status, "malformed")
    assert rules(client) == (["malformed"] if status == 400 else [])


async def test_renewal_information_can_be_missing(client: Client, issued: Issued) -> None:
    """Older CAs name none, and know no `replaces`."""
    client.ca.renewal.is_offered = False
    assert "renewalInfo" not in (await client.request("GET", client.ca.directory_url)).json
    url = client.url(f"/renewal-info/{cert_id(issued.certificate)}")
    assert (await client.request("GET", url)).status == 404
    order = await renew(client, issued)
    assert (order.status, "replaces" in order.json) == (201, False)
    assert rules(client) == ["replaces-wrong"]


async def test_the_address_can_end_in_a_slash(client: Client, issued: Issued) -> None:
    """Clients join it with one slash, not two."""
    client.ca.renewal.trailing_slash = True
    base = (await client.request("GET", client.ca.directory_url)).json["renewalInfo"]
    assert base.endswith("/renewal-info/")
    path = cert_id(issued.certificate)
    assert (await client.request("GET", f"{base}{path}")).status == 200
    assert (await client.request("GET", f"{base}/{path}")).status == 400


async def test_renewal_information_is_not_signed_for(client: Client, issued: Issued) -> None:
    """Section 4.1: a plain GET."""
    assert (await client.post(f"/renewal-info/{cert_id(issued.certificate)}")).status == 405


@pytest.mark.parametrize(("waited", "early"), [(5.9, True), (6.0, False)])
async def test_asking_before_retry_after_is_a_violation(
    client: Client, issued: Issued, clock: FakeClock, waited: float, early: bool
) -> None:
    """Retry-After is the least and the most that a client waits (section 4.3.2)."""
    client.ca.renewal.retry_after_seconds = 6
    await asked(client, issued)
    clock.advance(waited)
    await asked(client, issued)
    assert rules(client) == (["ari-retry-after"] if early else [])


async def test_nobody_need_wait_for_more_than_a_day(client: Client, issued: Issued, clock: FakeClock) -> None:
    """Section 4.3.2 lets clients take more for a day."""
    client.ca.renewal.retry_after_seconds = 10 * 86_400
    await asked(client, issued)
    clock.advance(86_400)
    await asked(client, issued)
    assert not client.ca.violations


async def test_asking_about_an_expired_certificate_is_a_violation(
    client: Client, issued: Issued, clock: FakeClock
) -> None:
    """Section 4.3: clients must stop."""
    clock.advance(91 * 86_400)
    await asked(client, issued)
    assert rules(client) == ["ari-ended"]


async def test_asking_about_a_replaced_certificate_is_a_violation(client: Client, issued: Issued) -> None:
    """From the moment its successor is with the client, and not before."""
    client.ca.renewal.retry_after_form = "none"
    order = await renew(client, issued)
    await client.prove(order)
    done = await client.finalize(order)
    client.ca.violations.clear()
    await asked(client, issued)
    assert not client.ca.violations
    await client.post(done.json["certificate"])
    await asked(client, issued)
    assert rules(client) == ["ari-ended"]


async def test_an_order_shows_what_it_replaces(client: Client, issued: Issued) -> None:
    """Section 5: in the answer, and whenever it is read."""
    order = await renew(client, issued)
    assert order.json["replaces"] == cert_id(issued.certificate)
    assert (await client.post(order.location)).json["replaces"] == cert_id(issued.certificate)
    assert newest(client).replaced_by == order.location


async def test_one_name_in_common_is_enough(client: Client, issued: Issued) -> None:
    """Names come and go between renewals."""
    assert (await renew(client, issued, "a.example.test", "b.example.test")).status == 201
    assert not client.ca.violations


async def test_a_second_order_for_one_predecessor_is_refused(client: Client, issued: Issued) -> None:
    """409 alreadyReplaced; a violation only where the client had come to know the first."""
    first = await renew(client, issued)
    again = await renew(client, issued)
    assert (again.status, again.problem) == (409, "alreadyReplaced")
    assert not client.ca.violations
    await client.post(first.json["authorizations"][0])
    assert (await renew(client, issued)).problem == "alreadyReplaced"
    assert rules(client) == ["second-order"]
    assert len(client.ca.orders) == 2


async def test_a_client_that_lost_the_answer_may_order_again(client: Client, issued: Issued) -> None:
    """It cannot know the order that was made; it drops `replaces`, which then is not missing."""
    client.ca.misbehaviour.script["newOrder"] = [LoseAnswer()]
    with pytest.raises(OSError):  # whatever the reset is called
        await renew(client, issued)
    assert (await renew(client, issued)).problem == "alreadyReplaced"
    client.ca.misbehaviour.retry_after_form = "none"
    await client.issue("a.example.test")
    assert not client.ca.violations


async def test_proof_that_is_used_again_proves_no_second_order(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    """The client has been at the authorization for the first certificate, not for the order whose answer it lost."""
    async with serve(settings=CaSettings(reuse_authorizations=True)) as client:
        await client.register()
        await client.issue("a.example.test")
        client.ca.violations.clear()
        await renew(client, newest(client))
        assert (await renew(client, newest(client))).problem == "alreadyReplaced"
        assert not client.ca.violations


async def test_whoever_was_refused_may_go_without(client: Client, issued: Issued) -> None:
    """Once: the certificate that comes of it is a predecessor like any other."""
    client.ca.misbehaviour.retry_after_form = "none"
    await client.post("/new-order", named("a.example.test", replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"))
    await client.issue("a.example.test")
    assert rules(client) == ["replaces-wrong"]
    await client.issue("a.example.test")
    assert rules(client) == ["replaces-wrong", "replaces-missing"]


async def test_a_predecessor_that_was_named_is_not_missing(client: Client, issued: Issued) -> None:
    """A second certificate, ordered while the first was being renewed, follows nothing."""
    client.ca.misbehaviour.retry_after_form = "none"
    await renew(client, issued)
    await client.issue("a.example.test")
    assert not client.ca.violations


async def test_other_profiles_are_no_renewals(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """A short-lived certificate beside a long one is meant to be."""
    short = Profile(description="short", lifetime=timedelta(days=6))
    async with serve(settings=CaSettings(profiles={"short": short})) as client:
        client.ca.misbehaviour.retry_after_form = "none"
        client.ca.misbehaviour.order_ready_at_once = True
        await client.register()
        for members in ({}, {"profile": "short"}):
            order = await client.post("/new-order", named("a.example.test", **members))
            await client.post((await client.finalize(order)).json["certificate"])
        assert not client.ca.violations


async def test_an_invalid_order_frees_its_predecessor(client: Client, issued: Issued) -> None:
    """Section 5: the next attempt names it again."""
    order = await renew(client, issued)
    await client.post(order.json["authorizations"][0], {"status": "deactivated"})
    again = await renew(client, issued)
    assert (again.status, newest(client).replaced_by) == (201, again.location)
    assert not client.ca.violations


@pytest.mark.parametrize("bend", ["unknown", "not_a_string", "other_names", "unreadable"])
async def test_a_wrong_predecessor_is_refused(client: Client, issued: Issued, bend: str) -> None:
    """Nothing is ordered, and the log says so."""
    good = cert_id(issued.certificate)
    value, name, status = {
        "unknown": ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE", "a.example.test", 404),
        "not_a_string": (5, "a.example.test", 400),
        "other_names": (good, "b.example.test", 400),
        "unreadable": ("nonsense", "a.example.test", 400),
    }[bend]
    reply = await client.post("/new-order", named(name, replaces=value))
    assert (reply.status, reply.problem) == (status, "malformed")
    assert rules(client)[0] == "replaces-wrong"
    assert len(client.ca.orders) == 1


async def test_another_accounts_certificate_is_no_predecessor(
    client: Client, neighbour: Client, issued: Issued
) -> None:
    """After a change of account `replaces` is left out."""
    await neighbour.register()
    reply = await renew(neighbour, issued)
    assert (reply.status, reply.problem) == (403, "unauthorized")
    assert rules(client) == ["replaces-wrong"]
    await neighbour.issue("a.example.test")
    assert "replaces-missing" not in rules(client)


async def test_a_missing_predecessor_is_a_violation(client: Client, issued: Issued) -> None:
    """The same names and the same kind of key, and the old one stands: a renewal that does not say so."""
    client.ca.misbehaviour.retry_after_form = "none"
    await client.issue("a.example.test")
    assert rules(client) == ["replaces-missing"]


async def test_other_kinds_of_key_are_no_renewals(client: Client, issued: Issued) -> None:
    """Servers keep an RSA certificate beside the other."""
    client.ca.misbehaviour.retry_after_form = "none"
    await client.issue("a.example.test", key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    assert not client.ca.violations


@pytest.mark.parametrize("ended", ["expired", "revoked", "never_had", "not_offered"])
async def test_a_predecessor_that_is_none_need_not_be_named(client: Client, clock: FakeClock, ended: str) -> None:
    """The log must not blame the innocent."""
    client.ca.misbehaviour.retry_after_form = "none"
    if ended == "never_had":
        await client.finalize(await client.ready_order("a.example.test"))
    else:
        await client.issue("a.example.test")
    match ended:
        case "expired":
            clock.advance(91 * 86_400)
        case "revoked":
            client.ca.revoke(newest(client).serial)
        case "not_offered":
            client.ca.renewal.is_offered = False
    await client.issue("a.example.test")
    assert not client.ca.violations


async def test_parallel_orders_have_no_predecessor(client: Client) -> None:
    """Both were placed before either was issued."""
    client.ca.misbehaviour.retry_after_form = "none"
    orders = [await client.ready_order("a.example.test") for _ in range(2)]
    for order in orders:
        await client.post((await client.finalize(order)).json["certificate"])
    assert not [each for each in rules(client) if each == "replaces-missing"]


async def test_the_policy_can_be_handed_in(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Tests that want no renewal information say so from the start."""
    async with serve(renewal=RenewalPolicy(is_offered=False)) as client:
        assert "renewalInfo" not in (await client.request("GET", client.ca.directory_url)).json
