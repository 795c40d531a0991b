"""google_cloud_dns against a server that behaves like Google's at the socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from scaivaultd_contrib_dns.google import in_quotes, scaivaultd_dns_providers
from scaivaultd_contrib_dns.google_settings import GoogleSettings

from scaivaultd.plugin import (
    Conflict,
    DnsProvider,
    DnsProviderKind,
    PermanentError,
    ProviderAuthError,
    RateLimited,
    SignalsLive,
    TransientError,
    Zone,
    ZoneNotFound,
    unquoted,
)
from scaivaultd.plugin.testing import (
    DnsProviderContract,
    FaultKind,
    FixedSecrets,
    JumpingClock,
    everything_about,
    open_provider,
)
from tests.fakes.google import OTHER_ACCOUNT, PROJECT, FakeGoogle, txt_set
from tests.fakes.name_server import name_server

NAME = "_acme-challenge.www.sub.example.org"
ZONE = Zone(name="sub.example.org", id="sub-zone")
ONE, TWO = "a" * 43, "b" * 43
KEY = rsa.generate_private_key(65537, 2048)
WRONG_KEY = rsa.generate_private_key(65537, 2048)
THROTTLED = json.dumps({"error": {"code": 403, "errors": [{"reason": "rateLimitExceeded"}]}}).encode()


class GoogleRig:
    """A project with a zone below another one, and a private twin of it."""

    def __init__(self, server: FakeGoogle) -> None:
        self.server = server

    @property
    def kind(self) -> DnsProviderKind:
        return next(iter(scaivaultd_dns_providers()))

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"service_account_json_path": "infra/google/key", "api_base": self.server.api_base}

    @property
    def secrets(self) -> Mapping[str, str]:
        return {"infra/google/key": self.server.key_file()}

    @property
    def wrong_secrets(self) -> Mapping[str, str] | None:
        return {"infra/google/key": self.server.key_file(WRONG_KEY)}

    @property
    def zone(self) -> str:
        return ZONE.name

    async def values(self, name: str) -> Sequence[str]:
        return [unquoted(text) for text in self.sets.get(f"{name}.", {}).get("rrdatas", ())]

    async def put_foreign(self, name: str, value: str) -> None:
        texts = self.sets.get(f"{name}.", {}).get("rrdatas", [])
        self.sets[f"{name}."] = txt_set(name, *texts, in_quotes(value), ttl=1234)

    @property
    def sets(self) -> dict[str, Any]:
        return self.server.zones[ZONE.id].sets

    async def fail(self, fault: FaultKind, times: int) -> None:
        self._fail(fault, times, "")

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        self._fail(fault, times, "^POST .*/changes$")

    def _fail(self, fault: FaultKind, times: int, where: str) -> None:
        if fault == "rate_limit":
            details = {"body": THROTTLED, "content_type": "application/json", "status": 403 if where else 429}
            self.server.fail("status", times=times, where=where, **details)
        elif fault == "server_error":
            self.server.fail("status", times=times, where=where, status=502)
        else:
            self.server.fail(fault, times=times, where=where)

    def complaints(self) -> Sequence[str]:
        return self.server.violations


@pytest.fixture
async def server() -> AsyncIterator[FakeGoogle]:
    """The server, which must have nothing to object to when the test is over."""
    async with FakeGoogle(KEY) as server:
        server.add_zone("parent-zone", "example.org")
        server.add_zone("sub-private", "sub.example.org", visibility="private")
        server.add_zone("sub-zone", "sub.example.org")
        yield server
        assert server.violations == []


@pytest.fixture
def rig(server: FakeGoogle) -> GoogleRig:
    return GoogleRig(server)


class TestGoogleContract(DnsProviderContract):
    """What every provider has to do."""

    @pytest.fixture
    def rig(self, server: FakeGoogle) -> GoogleRig:
        return GoogleRig(server)


def opened(rig: GoogleRig, **more: Any) -> AbstractAsyncContextManager[DnsProvider]:
    return open_provider(rig, **more)


# Zones


async def test_a_private_zone_of_the_same_name_is_passed_over(rig: GoogleRig) -> None:
    """Split horizons are common, and no CA sees the inner one."""
    async with opened(rig) as provider:
        zone = await provider.find_zone(NAME)
    assert (zone.name, zone.id) == ("sub.example.org", "sub-zone")
    assert zone.name_servers == ("ns-cloud-a1.googledomains.com", "ns-cloud-a2.googledomains.com")


async def test_zones_are_read_to_the_last_page(rig: GoogleRig) -> None:
    """A zone on the second page is as good as one on the first."""
    rig.server.page_size = 1
    async with opened(rig) as provider:
        assert (await provider.find_zone(NAME)).id == "sub-zone"
    assert [seen.query["pageToken"] for seen in rig.server.asked("managedZones$") if "pageToken" in seen.query]


async def test_a_zone_without_visibility_is_public(rig: GoogleRig) -> None:
    """Zones that are older than private ones do not say."""
    rig.server.add_zone("old", "old.example.org", visibility=None)
    async with opened(rig) as provider:
        assert (await provider.find_zone("_acme-challenge.old.example.org")).id == "old"


async def test_a_configured_zone_is_used_without_listing(rig: GoogleRig) -> None:
    """The right to list zones exists for whole projects only; not everybody gives it."""
    async with opened(rig, managed_zone="sub-zone") as provider:
        assert await provider.find_zone(NAME) == await provider.find_zone("sub.example.org")
        with pytest.raises(ZoneNotFound, match=r"is not in sub\.example\.org"):
            await provider.find_zone("_acme-challenge.example.org")
    assert rig.server.asked("managedZones$") == []


@pytest.mark.parametrize(("managed_zone", "text"), [("absent", "right project"), ("sub-private", "private")])
async def test_a_configured_zone_that_cannot_be_used_is_told(rig: GoogleRig, managed_zone: str, text: str) -> None:
    """Zones of other projects and private ones are the usual mistakes."""
    async with opened(rig, managed_zone=managed_zone) as provider:
        with pytest.raises(ZoneNotFound, match=text):
            await provider.find_zone(NAME)


@pytest.mark.parametrize("delegated", ["ns-cloud-b2.googledomains.com.", "ns.elsewhere.example."])
async def test_of_two_public_zones_the_delegated_one_is_used_or_none(rig: GoogleRig, delegated: str) -> None:
    """A half-finished move leaves two zones of one name; values in the wrong one are never seen."""
    servers = ["ns-cloud-b1.googledomains.com.", "ns-cloud-b2.googledomains.com."]
    rig.server.add_zone("twin", "sub.example.org", name_servers=servers)
    async with (
        name_server(delegated) as address,
        opened(rig, propagation_resolvers=[address]) as provider,
    ):
        if delegated.startswith("ns-cloud-b2"):
            assert (await provider.find_zone(NAME)).id == "twin"
        else:
            with pytest.raises(PermanentError, match=r"sub-zone, twin.*managed_zone"):
                await provider.find_zone(NAME)


# Record sets


async def test_a_foreign_set_is_deleted_exactly_and_written_back_as_it_was(rig: GoogleRig) -> None:
    """Odd quoting, several strings and the TTL are somebody else's; an inexact deletion would never match."""
    odd = ['"a\\"b\\\\c" "second string"', "bare", '"tail"']
    rig.sets[f"{NAME}."] = txt_set(NAME, *odd, ttl=7)
    async with opened(rig) as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
        assert rig.sets[f"{NAME}."] == txt_set(NAME, *odd, f'"{ONE}"', ttl=7)
        await provider.remove_txt(ZONE, NAME, [ONE], None)
    assert rig.sets[f"{NAME}."] == txt_set(NAME, *odd, ttl=7)


async def test_a_change_is_one_request(rig: GoogleRig) -> None:
    """Deleting and adding apart leaves a gap, and loses all when the second fails."""
    async with opened(rig) as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
        await provider.add_txt(ZONE, NAME, [TWO], 60)
        await provider.remove_txt(ZONE, NAME, [ONE, TWO], None)
    bodies = [json.loads(seen.body) for seen in rig.server.asked("^POST .*changes$")]
    both = txt_set(NAME, f'"{ONE}"', f'"{TWO}"')
    assert bodies == [
        {"additions": [txt_set(NAME, f'"{ONE}"')]},
        {"deletions": [txt_set(NAME, f'"{ONE}"')], "additions": [both]},
        {"deletions": [both]},
    ]


async def test_only_the_set_of_the_name_itself_is_touched(rig: GoogleRig) -> None:
    """A list that holds more than was asked for must not lead to another name's set."""
    rig.server.ignores_filters = True
    rig.server.page_size = 1
    rig.sets["other.sub.example.org."] = txt_set("other.sub.example.org", '"theirs"')
    rig.sets[f"{NAME}."] = txt_set(NAME, f'"{TWO}"')
    async with opened(rig) as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
    assert rig.sets["other.sub.example.org."] == txt_set("other.sub.example.org", '"theirs"')
    assert await rig.values(NAME) == [TWO, ONE]


async def test_a_change_whose_answer_is_lost_is_not_sent_again(rig: GoogleRig) -> None:
    """Looking first finds that it was done; sending it again would only fail."""
    rig.server.fail("drop_after", where="changes$")
    async with opened(rig) as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
    assert len(rig.server.asked("changes$")) == 1


@pytest.mark.parametrize("body", [b"<html>", b"", b"null", b'{"rrsets": ['])
@pytest.mark.parametrize("where", ["managedZones$", "rrsets$", "changes$"])
async def test_an_answer_that_cannot_be_read_is_asked_for_again(rig: GoogleRig, where: str, body: bytes) -> None:
    """Gateways answer 200 in the service's place; believing them loses the value, giving up loses the order."""
    rig.server.fail("status", where=where, status=200, body=body)
    async with opened(rig) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert await rig.values(NAME) == [ONE]


@pytest.mark.parametrize("lost", ["412", "404", "409"])
async def test_a_lost_race_is_run_again(rig: GoogleRig, lost: str) -> None:
    """The other writer's value must survive, and ours be there."""
    own = f"{NAME}."
    foreign = [(own, txt_set(NAME, '"theirs"', ttl=5)), (own, None), (own, txt_set(NAME, '"theirs"', ttl=5))]
    if lost != "409":
        rig.sets[own] = txt_set(NAME, '"before"')
    rig.server.meddle = foreign[1:2] if lost == "404" else foreign[:1]
    clock = JumpingClock()
    async with opened(rig, clock=clock) as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
    left = [] if lost == "404" else ['"theirs"']
    assert rig.sets[own]["rrdatas"] == [*left, f'"{ONE}"']
    assert len(clock.pauses) == 1, "one pause for one lost race"


async def test_a_race_is_lost_ten_times_at_most(rig: GoogleRig) -> None:
    """A writer that never stops must not hold up the order for ever."""
    rig.server.meddle = [(f"{NAME}.", txt_set(NAME, f'"{turn}"')) for turn in range(100)]
    clock = JumpingClock()
    async with opened(rig, clock=clock) as provider:
        with pytest.raises(Conflict, match="conditionNotMet"):
            await provider.add_txt(ZONE, NAME, [ONE], 60)
    assert len(rig.server.asked("^POST .*changes$")) == 11
    assert len(clock.pauses) == 10


async def test_calls_for_one_name_wait_for_each_other(rig: GoogleRig) -> None:
    """Of many that race each other some would lose every round."""
    values = [f"value-{number}" for number in range(20)]
    async with opened(rig) as provider:
        await asyncio.gather(*(provider.add_txt(ZONE, NAME, [value], 60) for value in values))
        assert sorted(await rig.values(NAME)) == sorted(values)
        await asyncio.gather(*(provider.remove_txt(ZONE, NAME, [value], None) for value in values))
    assert len(rig.server.asked("^POST .*changes$")) == 40


async def test_a_set_with_a_routing_policy_is_left_alone(rig: GoogleRig) -> None:
    """Its values stand elsewhere; replacing it would take them away."""
    routed = {**txt_set(NAME), "routingPolicy": {"wrr": {"items": []}}}
    rig.sets[f"{NAME}."] = routed
    async with opened(rig) as provider:
        with pytest.raises(PermanentError, match="routing policy"):
            await provider.add_txt(ZONE, NAME, [ONE], 60)
        await provider.remove_txt(ZONE, NAME, [ONE], None)
    assert rig.sets[f"{NAME}."] == routed


async def test_every_change_is_told_to_the_dns_that_a_ca_asks(rig: GoogleRig) -> None:
    """The fake feeds other tests' name servers."""
    told: list[tuple[str, tuple[str, ...]]] = []
    rig.server.on_txt = lambda name, values: told.append((name, values))
    async with opened(rig) as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
        await provider.remove_txt(ZONE, NAME, [ONE], None)
    assert told == [(NAME, (ONE,)), (NAME, ())]


# Changes


async def test_waiting_ends_when_the_change_is_done(rig: GoogleRig) -> None:
    """Asking the name servers before that teaches resolvers that the value is absent."""
    rig.server.pending_looks = 3
    clock = JumpingClock()
    async with opened(rig, clock=clock, polling_interval=1.0) as provider:
        assert isinstance(provider, SignalsLive)
        handle = await provider.add_txt(ZONE, NAME, [ONE], 60)
        await provider.wait_live(handle)
        assert clock.pauses == [0.5, 0.75, 1.0]
        await provider.wait_live({"zone": "sub-zone", "change": "no-such-change"})
        await provider.wait_live(await provider.add_txt(ZONE, NAME, [ONE], 60))
    assert len(rig.server.asked("changes/")) == 5


# Errors


@pytest.mark.parametrize(
    ("status", "reason", "expected", "text"),
    [
        (403, "forbidden", ProviderAuthError, "forbidden"),
        (403, "accessNotConfigured", ProviderAuthError, "accessNotConfigured"),
        (403, "rateLimitExceeded", RateLimited, "slow down"),
        (403, "userRateLimitExceeded", RateLimited, "slow down"),
        (403, "quotaExceeded", RateLimited, "slow down"),
        (400, "cnameResourceRecordSetConflict", PermanentError, "CNAME stands at the name"),
        (409, "cnameResourceRecordSetConflict", PermanentError, "CNAME stands at the name"),
        (400, "invalid", PermanentError, "invalid"),
        (503, "backendError", TransientError, "backendError"),
    ],
)
async def test_the_reason_decides_what_a_status_means(
    rig: GoogleRig, status: int, reason: str, expected: type[Exception], text: str
) -> None:
    """403 is a missing right or a hurry; mixing them up gives up too early or never."""
    body = json.dumps({"error": {"code": status, "message": "So it is.", "errors": [{"reason": reason}]}}).encode()
    rig.server.fail("status", times=1000, where="changes", status=status, body=body, content_type="application/json")
    async with opened(rig, max_retries=1) as provider:
        with pytest.raises(expected, match=text) as caught:
            await provider.add_txt(ZONE, NAME, [ONE], 60)
    assert type(caught.value) is not TransientError or expected is TransientError
    assert "So it is." in str(caught.value)


async def test_a_missing_right_to_list_names_the_way_out(rig: GoogleRig) -> None:
    """The right exists for projects only: people with a role on one zone meet this first."""
    body = b'{"error": {"code": 403, "errors": [{"reason": "forbidden"}], "status": "PERMISSION_DENIED"}}'
    rig.server.fail("status", times=9, where="managedZones$", status=403, body=body, content_type="application/json")
    async with opened(rig) as provider:
        with pytest.raises(ProviderAuthError, match=rf"managedZones\.list in project {PROJECT}.*managed_zone"):
            await provider.find_zone(NAME)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": null}',
        b'{"error": "flat"}',
        b"[]",
        b"\xff",
        b'{"error": {"errors": [1]}}',
        b'{"error": {"errors": 5}}',
    ],
)
async def test_odd_error_bodies_fall_back_to_the_status(rig: GoogleRig, body: bytes) -> None:
    """Front ends answer in formats of their own."""
    rig.server.fail("status", times=9, where="changes", status=400, body=body, content_type="application/json")
    async with opened(rig) as provider:
        with pytest.raises(PermanentError, match="HTTP 400"):
            await provider.add_txt(ZONE, NAME, [ONE], 60)


async def test_impersonation_needs_the_right_to_it(rig: GoogleRig) -> None:
    """The text names the role, since Google's own does not."""
    config = {"impersonate_service_account": "stranger@x.iam.gserviceaccount.com", "iam_base": f"{rig.server.url}/v1"}
    async with opened(rig, **config) as provider:
        with pytest.raises(ProviderAuthError, match="serviceAccountTokenCreator") as caught:
            await provider.add_txt(ZONE, NAME, [ONE], 60)
    assert "ya29." not in everything_about(caught.value)


async def test_impersonation_writes_as_the_other_account(rig: GoogleRig) -> None:
    """The base token is good for IAM only, the one it buys for DNS only."""
    config = {"impersonate_service_account": OTHER_ACCOUNT, "iam_base": f"{rig.server.url}/v1", "project": PROJECT}
    async with opened(rig, **config) as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
    assert await rig.values(NAME) == [ONE]


# Settings


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"credentials_source": "service_account"}, "needs service_account_json_path"),
        ({"credentials_source": "metadata", "service_account_json_path": "a/b"}, "leave one out"),
        ({"service_account_json_path": '{"private_key": "s3cret"}'}, "reference to a secret"),
        ({"api_base": "http://dns.example/dns/v1"}, "api_base: .*https is needed"),
        ({"token_uri": "http://192.0.2.1/token"}, "token_uri: .*https is needed"),
        ({"impersonate_service_account": "no-address"}, "impersonate_service_account"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_given(config: dict[str, Any], text: str) -> None:
    """At three in the morning nobody wants to learn that half of the credentials were never there."""
    with pytest.raises(msgspec.ValidationError, match=text) as caught:
        msgspec.convert(config, GoogleSettings)
    assert "s3cret" not in everything_about(caught.value)


async def test_a_missing_project_is_asked_for(rig: GoogleRig) -> None:
    """Some keys do not say where they belong."""
    secrets = FixedSecrets({"infra/google/key": rig.server.key_file(project_id=None)})
    async with opened(rig, secrets=secrets) as provider:
        with pytest.raises(PermanentError, match="set `project`"):
            await provider.find_zone(NAME)
    async with opened(rig, secrets=secrets, project=PROJECT) as provider:
        assert (await provider.find_zone(NAME)).id == "sub-zone"


@pytest.mark.parametrize("value", ['q"uo\\te', "x" * 600, "", "ü"])
def test_values_are_quoted_so_that_they_read_back(value: str) -> None:
    """A value that is not recognised as ours is never removed."""
    assert unquoted(in_quotes(value)).encode("latin-1").decode() == value
