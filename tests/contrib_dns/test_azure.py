"""azure_dns against a server that behaves like Azure's at the socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from scaivaultd_contrib_dns.azure import scaivaultd_dns_providers

from scaivaultd.plugin import (
    Checkable,
    Conflict,
    DnsProvider,
    DnsProviderKind,
    PermanentError,
    ProviderAuthError,
    RateLimited,
    TransientError,
    Zone,
    ZoneNotFound,
    relative_name,
)
from scaivaultd.plugin.testing import (
    DnsProviderContract,
    FaultKind,
    JumpingClock,
    open_provider,
)
from tests.fakes.azure import CLIENT, SUBSCRIPTION, TENANT, FakeAzure, FakeZone, values

RELATIVE = "_acme-challenge.www"
NAME = f"{RELATIVE}.sub.example.org"
ONE, TWO = "a" * 43, "b" * 43
JSON = "application/json"


class AzureRig:
    """A subscription with a zone below another one, and a private twin of it."""

    def __init__(self, server: FakeAzure) -> None:
        self.server = server

    @property
    def kind(self) -> DnsProviderKind:
        return next(iter(scaivaultd_dns_providers()))

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "tenant_id": TENANT,
            "client_id": CLIENT,
            "client_secret_path": "infra/azure/secret",
            "subscription_id": SUBSCRIPTION,
            "api_base": self.server.url,
            "authority_url": self.server.url,
        }

    @property
    def secrets(self) -> Mapping[str, str]:
        return {"infra/azure/secret": self.server.client_secret}

    @property
    def wrong_secrets(self) -> Mapping[str, str] | None:
        return {"infra/azure/secret": "a-wrong-client-secret"}

    @property
    def zone(self) -> str:
        return "sub.example.org"

    async def values(self, name: str) -> Sequence[str]:
        return values(self.held, relative_name(name, self.zone))

    async def put_foreign(self, name: str, value: str) -> None:
        relative = relative_name(name, self.zone)
        records = self.records(relative)
        strings = [value[place : place + 255] for place in range(0, len(value), 255)]
        properties = {"TTL": 1234, "TXTRecords": [*records, {"value": strings}], "metadata": {"owner": "somebody"}}
        self.server.put(self.held, relative, properties)

    @property
    def held(self) -> FakeZone:
        return next(zone for zone in self.server.zones if zone.name == self.zone and zone.zone_type == "Public")

    @property
    def given(self) -> Zone:
        return Zone(name=self.zone, id=self.held.id)

    def records(self, relative: str = RELATIVE) -> list[Any]:
        found: list[Any] = self.held.sets.get(relative, {}).get("properties", {}).get("TXTRecords", [])
        return found

    async def fail(self, fault: FaultKind, times: int) -> None:
        self._fail(fault, times, "")

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        self._fail(fault, times, "^(PUT|DELETE) ")

    def _fail(self, fault: FaultKind, times: int, where: str) -> None:
        if fault == "rate_limit":
            body = b'{"error": {"code": "TooManyRequests", "message": "Slow down."}}'
            headers = {"Retry-After": "2"}
            self.server.fail(
                "status", times=times, where=where, status=429, body=body, headers=headers, content_type=JSON
            )
        elif fault == "server_error":
            self.server.fail("status", times=times, where=where, status=502)
        else:
            self.server.fail(fault, times=times, where=where)

    def complaints(self) -> Sequence[str]:
        return self.server.violations


@pytest.fixture
async def server() -> AsyncIterator[FakeAzure]:
    """The server, which must have nothing to object to when the test is over."""
    async with FakeAzure() as server:
        server.add_zone("Parents", "example.org")
        server.add_zone("Inner", "sub.example.org", zone_type="Private")
        server.add_zone("Dns-Group (1)", "sub.example.org")
        yield server
        assert server.violations == []


@pytest.fixture
def rig(server: FakeAzure) -> AzureRig:
    return AzureRig(server)


class TestAzureContract(DnsProviderContract):
    """What every provider has to do."""

    @pytest.fixture
    def rig(self, server: FakeAzure) -> AzureRig:
        return AzureRig(server)


class TestAzureContractKeepingSets(DnsProviderContract):
    """The same, when no record set is ever deleted."""

    @pytest.fixture
    def rig(self, server: FakeAzure) -> AzureRig:
        class Keeping(AzureRig):
            @property
            def settings(self) -> Mapping[str, Any]:
                return {**super().settings, "keep_record_set": True}

        return Keeping(server)


def opened(rig: AzureRig, **more: Any) -> AbstractAsyncContextManager[DnsProvider]:
    return open_provider(rig, **more)


# Zones


async def test_zones_are_read_to_the_last_page(rig: AzureRig) -> None:
    """A zone on the third page is as good as one on the first."""
    rig.server.page_size = 1
    async with opened(rig) as provider:
        assert await provider.find_zone(NAME) == Zone(
            name="sub.example.org", id=rig.held.id, name_servers=("ns1-01.azure-dns.com", "ns2-01.azure-dns.net")
        )
    assert len(rig.server.asked("dnszones$")) == 3


async def test_a_next_page_at_another_host_is_not_followed(rig: AzureRig) -> None:
    """The token would go there."""
    rig.server.page_size = 1
    rig.server.next_host = "http://127.0.0.2:1"
    async with opened(rig) as provider:
        with pytest.raises(PermanentError, match="another host"):
            await provider.find_zone(NAME)


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({"resource_group": "dns-GROUP (1)"}, "/resourceGroups/dns-GROUP%20(1)/providers/Microsoft.Network/dnsZones"),
        (
            {"resource_group": "dns-group (1)", "zone_name": "Sub.Example.org."},
            "/resourceGroups/dns-group%20(1)/providers/Microsoft.Network/dnsZones/sub.example.org",
        ),
        ({"zone_name": "sub.example.org"}, "/providers/Microsoft.Network/dnszones"),
    ],
)
async def test_settings_narrow_what_is_asked_for(rig: AzureRig, config: dict[str, str], asked: str) -> None:
    """Rights on a group or on one zone are enough then."""
    async with opened(rig, **config) as provider:
        assert (await provider.find_zone(NAME)).id == rig.held.id
    assert [seen.path for seen in rig.server.asked("^GET")] == [f"/subscriptions/{SUBSCRIPTION}{asked}"]


async def test_zones_outside_the_settings_are_not_found(rig: AzureRig) -> None:
    """The text says where was looked."""
    async with opened(rig, resource_group="Parents", zone_name="example.org") as provider:
        assert (await provider.find_zone(NAME)).name == "example.org"
        with pytest.raises(ZoneNotFound, match=r"named example\.org in resource group Parents"):
            await provider.find_zone("_acme-challenge.example.net")


async def test_two_public_zones_of_one_name_ask_for_the_resource_group(rig: AzureRig) -> None:
    """Values in the wrong one are never seen; here DNS cannot be asked."""
    rig.server.add_zone("Elsewhere", "sub.example.org")
    async with opened(rig, propagation_resolvers=["127.0.0.1:1"]) as provider:
        with pytest.raises(PermanentError, match="set `resource_group`"):
            await provider.find_zone(NAME)


# Record sets


async def test_all_of_a_foreign_set_is_written_back(rig: AzureRig) -> None:
    """Replacing a set takes everything with it: strings, TTL and metadata are somebody else's."""
    theirs = [{"value": ["first ", 'sec"ond\\']}, {"value": ["x" * 255, "y"]}]
    properties = {"TTL": 7, "TXTRecords": theirs, "metadata": {"owner": "x", "empty": ""}}
    rig.server.put(rig.held, RELATIVE, properties)
    async with opened(rig) as provider:
        await provider.add_txt(rig.given, NAME, [ONE], 60)
        assert rig.held.sets[RELATIVE]["properties"] == {**properties, "TXTRecords": [*theirs, {"value": [ONE]}]}
        await provider.remove_txt(rig.given, NAME, [ONE], None)
    assert rig.held.sets[RELATIVE]["properties"] == properties


async def test_the_apex_is_written_as_at(rig: AzureRig) -> None:
    """Delegated names are often zones of their own."""
    async with opened(rig) as provider:
        await provider.add_txt(rig.given, "sub.example.org", [ONE], 60)
    assert rig.server.asked("^PUT .*/TXT/@$")


async def test_an_empty_set_is_filled_and_can_be_kept(rig: AzureRig) -> None:
    """A role assignment on a record set dies when the set is deleted."""
    rig.server.put(rig.held, RELATIVE, {"TTL": 30, "TXTRecords": None})
    async with opened(rig, keep_record_set=True) as provider:
        await provider.add_txt(rig.given, NAME, [ONE], 60)
        await provider.remove_txt(rig.given, NAME, [ONE], None)
    assert rig.held.sets[RELATIVE]["properties"] == {"TTL": 30, "TXTRecords": []}
    assert rig.server.asked("^DELETE") == []


async def test_the_last_value_takes_the_set_with_it(rig: AzureRig) -> None:
    """An empty set under a wildcard hides the wildcard's addresses."""
    async with opened(rig) as provider:
        await provider.add_txt(rig.given, NAME, [ONE], 60)
        await provider.remove_txt(rig.given, NAME, [ONE], None)
    assert RELATIVE not in rig.held.sets


@pytest.mark.parametrize("method", ["put over", "put new", "put gone", "delete"])
async def test_a_lost_race_is_run_again(rig: AzureRig, method: str) -> None:
    """The other writer's value must survive, and ours be there, or not."""
    theirs = {"TTL": 5, "TXTRecords": [{"value": ["theirs"]}]}
    clock = JumpingClock()
    async with opened(rig, clock=clock) as provider:
        if method != "put new":
            rig.server.put(rig.held, RELATIVE, {"TTL": 5, "TXTRecords": [{"value": [TWO]}]})
        rig.server.meddle = [(RELATIVE, None if method == "put gone" else theirs)]
        if method == "delete":
            await provider.remove_txt(rig.given, NAME, [TWO], None)
        else:
            await provider.add_txt(rig.given, NAME, [ONE], 60)
    expected = {"delete": ["theirs"], "put gone": [ONE]}.get(method, ["theirs", ONE])
    assert await rig.values(NAME) == expected
    assert len(clock.pauses) == 1, "one pause for one lost race"


async def test_calls_for_one_name_wait_for_each_other(rig: AzureRig) -> None:
    """Of many that race each other some would lose every round."""
    values = [f"value-{number}" for number in range(20)]
    async with opened(rig) as provider:
        await asyncio.gather(*(provider.add_txt(rig.given, NAME, [value], 60) for value in values))
        assert sorted(await rig.values(NAME)) == sorted(values)
        await asyncio.gather(*(provider.remove_txt(rig.given, NAME, [value], None) for value in values))
    assert len(rig.server.asked("^(PUT|DELETE)")) == 40


async def test_a_race_is_lost_ten_times_at_most(rig: AzureRig) -> None:
    """A writer that never stops must not hold up the order for ever."""
    rig.server.meddle = [(RELATIVE, {"TTL": 5, "TXTRecords": [{"value": [f"{turn}"]}]}) for turn in range(100)]
    async with opened(rig) as provider:
        with pytest.raises(Conflict, match="PreconditionFailed"):
            await provider.add_txt(rig.given, NAME, [ONE], 60)
    assert len(rig.server.asked("^PUT")) == 11


async def test_ids_in_any_case_lead_to_the_same_place(rig: AzureRig) -> None:
    """The journal holds ids as some answer had them; servers in front may be stricter than Azure."""
    async with opened(rig) as provider:
        for zone_id in (rig.held.id, rig.held.id.replace("resourceGroups", "resourcegroups")):
            await provider.add_txt(Zone(name="sub.example.org", id=zone_id), NAME, [ONE], 60)
        with pytest.raises(PermanentError, match="resource id"):
            await provider.add_txt(Zone(name="sub.example.org", id="../x"), NAME, [ONE], 60)
    assert await rig.values(NAME) == [ONE]


async def test_every_change_is_told_to_the_dns_that_a_ca_asks(rig: AzureRig) -> None:
    """The fake feeds other tests' name servers."""
    told: list[tuple[str, tuple[str, ...]]] = []
    rig.server.on_txt = lambda name, texts: told.append((name, texts))
    async with opened(rig) as provider:
        await provider.add_txt(rig.given, NAME, [ONE], 60)
        await provider.remove_txt(rig.given, NAME, [ONE], None)
    assert told == [(NAME, (ONE,)), (NAME, ())]


@pytest.mark.parametrize("body", [b"<html>", b"", b"null", b'{"value": ['])
@pytest.mark.parametrize("where", ["^GET .*dnszones$", "^GET .*/TXT/", "^PUT"])
async def test_an_answer_that_cannot_be_read_is_asked_for_again(rig: AzureRig, where: str, body: bytes) -> None:
    """Gateways answer 200 in the service's place; believing them loses the value, giving up loses the order."""
    rig.server.fail("status", where=where, status=200, body=body)
    async with opened(rig) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert await rig.values(NAME) == [ONE]


# Errors


def error_body(code: str, *, flat: bool = False) -> bytes:
    error = {"code": code, "message": "So it is."}
    return json.dumps(error if flat else {"error": error}).encode()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "expected", "text"),
    [
        (401, "ExpiredAuthenticationToken", ProviderAuthError, "ExpiredAuthenticationToken"),
        (403, "AuthorizationFailed", ProviderAuthError, "role assignment is missing"),
        (404, "ParentResourceNotFound", ZoneNotFound, "zone is not there"),
        (404, "ResourceGroupNotFound", ZoneNotFound, "zone is not there"),
        (404, "ResourceNotFound", ZoneNotFound, "zone is not there"),
        (404, "SubscriptionNotFound", PermanentError, "check subscription_id"),
        (409, "ScopeLocked", PermanentError, "keep_record_set"),
        (409, "Conflict", Conflict, "another writer"),
        (429, "TooManyRequests", RateLimited, "slow down"),
        (400, "BadRequest", PermanentError, "BadRequest"),
        (500, "InternalServerError", TransientError, "InternalServerError"),
    ],
)
async def test_the_code_decides_what_a_status_means(
    rig: AzureRig, status: int, code: str, expected: type[Exception], text: str, flat: bool
) -> None:
    """404 is an absent record set, or a mistake in the settings; only the code tells."""
    rig.server.fail(
        "status", times=1000, where="^PUT", status=status, body=error_body(code, flat=flat), content_type=JSON
    )
    async with opened(rig, max_retries=1) as provider:
        with pytest.raises(expected, match=text) as caught:
            await provider.add_txt(rig.given, NAME, [ONE], 60)
    assert "So it is." in str(caught.value)


@pytest.mark.parametrize("code", ["ParentResourceNotFound", "ResourceGroupNotFound", "NotFound"])
async def test_cleaning_up_what_is_gone_is_done(rig: AzureRig, code: str) -> None:
    """The journal must come to an end."""
    rig.server.fail("status", where="^GET", status=404, body=error_body(code), content_type=JSON)
    async with opened(rig) as provider:
        await provider.remove_txt(rig.given, NAME, [ONE], None)
    assert len(rig.server.asked("^(GET|PUT|DELETE)")) == 1


async def test_cleaning_up_in_a_wrong_subscription_is_not_done(rig: AzureRig) -> None:
    """The value is still there: whoever changed the settings has to know."""
    rig.server.fail("status", where="^GET", status=404, body=error_body("SubscriptionNotFound"), content_type=JSON)
    async with opened(rig) as provider:
        with pytest.raises(PermanentError, match="subscription_id"):
            await provider.remove_txt(rig.given, NAME, [ONE], None)


async def test_checking_waits_for_role_assignments(rig: AzureRig) -> None:
    """They take minutes to act, and people configure the provider right after them."""
    body = error_body("AuthorizationFailed")
    rig.server.fail("status", times=4, where="dnszones$", status=403, body=body, content_type=JSON)
    clock = JumpingClock()
    async with opened(rig, clock=clock) as provider:
        assert isinstance(provider, Checkable)
        await provider.check()
        assert clock.pauses == [10.0, 10.0]
        rig.server.fail("status", times=99, where="dnszones$", status=403, body=body, content_type=JSON)
        with pytest.raises(ProviderAuthError, match="role assignment"):
            await provider.check()


async def test_checking_a_named_zone_looks_for_it(rig: AzureRig) -> None:
    """A misspelt zone is told when the provider is configured."""
    async with opened(rig, resource_group="Parents", zone_name="example.net") as provider:
        assert isinstance(provider, Checkable)
        with pytest.raises(ZoneNotFound, match=r"no zone named example\.net"):
            await provider.check()
