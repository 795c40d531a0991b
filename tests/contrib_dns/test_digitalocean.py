"""DigitalOcean: the contract, and what is special to its API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from scaivaultd_contrib_dns.digitalocean import KIND

from scaivaultd.plugin import Checkable, PermanentError, ProviderAuthError, RateLimited, Zone, ZoneNotFound
from scaivaultd.plugin.testing import (
    DnsProviderContract,
    FixedSecrets,
    JumpingClock,
    Rig,
    open_provider,
    txt_value,
)
from tests.fakes.descriptions import ApiRig
from tests.fakes.digitalocean import TOKEN, FakeDigitalOcean

NAME = "_acme-challenge.www.dns.example.com"
ONE, TWO = txt_value(1), txt_value(2)


@pytest.fixture
async def server() -> AsyncIterator[FakeDigitalOcean]:
    async with FakeDigitalOcean() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def api(server: FakeDigitalOcean) -> ApiRig:
    settings = {"api_token_path": "dns/token", "api_base": server.api_base, "max_retries": 3}
    return ApiRig(KIND, server, settings, {"dns/token": TOKEN}, zone="dns.example.com")


class TestDigitalOceanContract(DnsProviderContract):
    """What every provider has to do."""

    @pytest.fixture
    async def rig(self, api: ApiRig, server: FakeDigitalOcean) -> AsyncIterator[Rig]:
        server.page_size = 2
        yield api


async def test_names_are_sent_relative_to_the_domain(api: ApiRig, server: FakeDigitalOcean) -> None:
    """To a complete name without a dot at its end the service appends the domain once more."""
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        await provider.add_txt(zone, NAME, [ONE], 60)
        await provider.add_txt(zone, "dns.example.com", [TWO], 60)
    assert [each.name for each in server.records] == ["_acme-challenge.www", "@"]


async def test_a_value_is_sent_bare_with_a_ttl_the_service_takes(api: ApiRig, server: FakeDigitalOcean) -> None:
    """It quotes by itself, and refuses less than 30 seconds."""
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 5)
    [record] = server.records
    assert (record.data, record.ttl) == (ONE, 30)


async def test_a_new_value_gets_the_ttl_of_those_beside_it(api: ApiRig, server: FakeDigitalOcean) -> None:
    """A set has one TTL; servers differ in what they make of two."""
    server.put(NAME, "other", ttl=300)
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert [each.ttl for each in server.records] == [300, 300]


@pytest.mark.parametrize("kind", ["drop_after", "status"])
async def test_a_lost_answer_does_not_write_a_value_twice(api: ApiRig, server: FakeDigitalOcean, kind: str) -> None:
    """The service takes duplicates without a word: piles of them are reported of other clients."""
    if kind == "drop_after":
        server.fail("drop_after", where="^POST ")
    else:
        server.fail("status", status=201, body=b"<html>", where="^POST ")
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        handle = await provider.add_txt(zone, NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]
    assert handle == {"ids": {ONE: str(server.records[0].id)}}


async def test_every_copy_of_a_value_is_removed(api: ApiRig, server: FakeDigitalOcean) -> None:
    """Other clients, or an older run, may have left several."""
    for text in (ONE, TWO, ONE):
        server.put(NAME, text)
    async with open_provider(api) as provider:
        await provider.remove_txt(await provider.find_zone(NAME), NAME, [ONE], {"ids": {ONE: "1001"}})
    assert server.txt_values(NAME) == [TWO]
    assert len(server.asked("DELETE")) == 2


@pytest.mark.parametrize("shown", ["links", "meta", "both"])
async def test_more_than_a_hundred_records_are_all_read(api: ApiRig, server: FakeDigitalOcean, shown: str) -> None:
    """A value on a later page was never cleaned up by others, or written a second time."""
    server.page_size = 20
    server.shows_links, server.shows_meta = shown != "meta", shown != "links"
    for number in range(130):
        server.put(NAME, txt_value(number))
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        await provider.add_txt(zone, NAME, [txt_value(129)], 60)
        assert server.asked("POST") == []
        await provider.remove_txt(zone, NAME, [txt_value(129)], None)
    assert len(server.records) == 129


async def test_a_link_to_another_host_is_not_followed(api: ApiRig, server: FakeDigitalOcean) -> None:
    """The token goes to one host only, whatever an answer says."""
    async with FakeDigitalOcean() as stranger:
        server.link_root = stranger.url
        server.page_size = 1
        server.put(NAME, ONE)
        server.put(NAME, TWO)
        async with open_provider(api) as provider:
            await provider.remove_txt(await provider.find_zone(NAME), NAME, [ONE, TWO], None)
        assert stranger.seen == []
    assert server.records == []


async def test_the_list_of_domains_has_the_last_word(api: ApiRig, server: FakeDigitalOcean) -> None:
    """A look by name that fails for reasons of its own must not hide a domain that is there."""
    server.page_size = 1
    server.fail("status", times=4, status=404, where="GET /v2/domains/", body=b"{}", content_type="application/json")
    async with open_provider(api) as provider:
        assert (await provider.find_zone(NAME)).name == "dns.example.com"


async def test_a_name_without_a_domain_tells_how_many_there_are(api: ApiRig, server: FakeDigitalOcean) -> None:
    """A token of another team is the usual reason."""
    async with open_provider(api) as provider:
        with pytest.raises(ZoneNotFound, match="it has 4 domains"):
            await provider.find_zone("_acme-challenge.elsewhere.test")


async def test_names_that_can_be_no_domain_may_be_refused(api: ApiRig, server: FakeDigitalOcean) -> None:
    """The search begins with the full name, which has an underscore."""
    server.odd_names_status = 422
    async with open_provider(api) as provider:
        assert (await provider.find_zone(NAME)).name == "dns.example.com"


async def test_a_configured_domain_is_the_only_one(api: ApiRig, server: FakeDigitalOcean) -> None:
    """Also where a longer one would fit."""
    async with open_provider(api, domain="Example.com.") as provider:
        assert (await provider.find_zone(NAME)).name == "example.com"
        with pytest.raises(ZoneNotFound, match=r"not in the configured domain example\.com"):
            await provider.find_zone("_acme-challenge.example.org")
    async with open_provider(api, domain="gone.test") as provider:
        with pytest.raises(ZoneNotFound, match=r"the configured domain gone\.test is not in this DigitalOcean account"):
            await provider.find_zone("_acme-challenge.gone.test")


async def test_a_token_without_the_scope_is_told_which_it_needs(api: ApiRig, server: FakeDigitalOcean) -> None:
    """Custom scopes are easily forgotten."""
    server.tokens[TOKEN] = {"domain:read"}
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(ProviderAuthError, match="domain:create"):
            await provider.add_txt(zone, NAME, [ONE], 60)


async def test_a_refusal_holds_the_services_words_and_is_not_repeated(api: ApiRig, server: FakeDigitalOcean) -> None:
    """A CNAME at the name stays there, however often one asks."""
    server.put(NAME, "elsewhere.test", kind="CNAME")
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(PermanentError, match=r"CNAME records cannot share.*request req-1") as caught:
            await provider.add_txt(zone, NAME, [ONE], 60)
    assert caught.value.code == "unprocessable_entity"
    assert len(server.asked("POST")) == 1


async def test_the_hourly_limit_tells_when_it_ends(api: ApiRig, server: FakeDigitalOcean) -> None:
    """It sends no `Retry-After`, only the time when the oldest request is forgotten."""
    clock = JumpingClock()
    reset = int(clock.now().timestamp()) + 600
    headers = {"ratelimit-remaining": "0", "ratelimit-reset": str(reset)}
    server.fail("status", times=9, status=429, headers=headers)
    async with open_provider(api, clock=clock) as provider:
        with pytest.raises(RateLimited) as caught:
            await provider.find_zone(NAME)
    assert caught.value.retry_after == pytest.approx(600, abs=5)
    assert len(server.seen) == 1


async def test_the_burst_limit_is_waited_for(api: ApiRig, server: FakeDigitalOcean) -> None:
    """That one does send `Retry-After`."""
    headers = {"ratelimit-remaining": "0", "ratelimit-reset": "4102444800", "retry-after": "7"}
    server.fail("status", status=429, headers=headers)
    clock = JumpingClock()
    async with open_provider(api, clock=clock) as provider:
        await provider.find_zone(NAME)
    assert clock.pauses == [7.0]


async def test_a_domain_that_went_is_told_when_adding(api: ApiRig, server: FakeDigitalOcean) -> None:
    """The host may have found the zone an hour ago."""
    async with open_provider(api) as provider:
        with pytest.raises(ZoneNotFound, match=r"the domain gone\.test is not in"):
            await provider.add_txt(Zone(name="gone.test"), "_acme-challenge.gone.test", [ONE], 60)


async def test_nulls_and_numbers_in_quotes_are_read(api: ApiRig, server: FakeDigitalOcean) -> None:
    """The description allows nulls nearly everywhere, and gateways turn numbers into texts."""
    body = (
        b'{"domain_records":[null,{"id":"77","type":"TXT","name":null,"data":"%s","ttl":"120","new":1}],'
        b'"links":null,"meta":null}'
    ) % ONE.encode()
    server.fail("status", status=200, body=body, content_type="application/json", where="GET .*/records")
    async with open_provider(api) as provider:
        handle = await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert handle == {"ids": {ONE: "77"}}
    assert server.asked("POST") == []


async def test_check_finds_an_account_without_domains(api: ApiRig, server: FakeDigitalOcean) -> None:
    """The token works, and is of no use."""
    async with open_provider(api) as provider:
        assert isinstance(provider, Checkable)
        await provider.check()
        server.domains.clear()
        with pytest.raises(ZoneNotFound, match="has no domains"):
            await provider.check()


async def test_check_looks_at_the_configured_domain(api: ApiRig, server: FakeDigitalOcean) -> None:
    """And it writes nothing."""
    async with open_provider(api, domain="example.com") as provider:
        assert isinstance(provider, Checkable)
        await provider.check()
        server.domains.remove("example.com")
        with pytest.raises(ZoneNotFound):
            await provider.check()
    assert {each.method for each in server.seen} == {"GET"}


async def test_a_secret_that_can_be_no_token_is_refused_by_reference(api: ApiRig, server: FakeDigitalOcean) -> None:
    """It would make an invalid header; the text of the error names the reference and not the secret."""
    async with open_provider(api, secrets=FixedSecrets({"dns/token": "two words"})) as provider:
        with pytest.raises(ProviderAuthError, match="the secret dns/token is no token") as caught:
            await provider.find_zone(NAME)
    assert "two words" not in caught.value.detail
    assert server.seen == []


@pytest.mark.parametrize("status", [200, 400, 404])
async def test_a_list_that_does_not_say_how_long_it_is_is_read_to_its_end(
    api: ApiRig, server: FakeDigitalOcean, status: int
) -> None:
    """And a page behind the last one may be refused: that is no word about the domain."""
    server.page_size, server.odd_page_status = 1, status
    server.shows_links = server.shows_meta = False
    for number in range(4):
        server.put(NAME, txt_value(number))
    async with open_provider(api) as provider:
        await provider.remove_txt(await provider.find_zone(NAME), NAME, [txt_value(3)], None)
    assert server.txt_values(NAME) == [txt_value(number) for number in range(3)]


@pytest.mark.parametrize("body", [b"", b"<html>maintenance</html>", b"{}"])
async def test_an_answer_that_says_nothing_is_asked_for_again(
    api: ApiRig, server: FakeDigitalOcean, body: bytes
) -> None:
    """Taken for a domain it would be one that is none, taken for an empty list it would leave a value behind."""
    server.put(NAME, ONE)
    async with open_provider(api) as provider:
        server.fail("status", status=200, body=body, content_type="application/json")
        zone = await provider.find_zone(NAME)
        assert zone.name == "dns.example.com"
        server.fail("status", status=200, body=body, content_type="application/json")
        await provider.remove_txt(zone, NAME, [ONE], None)
    assert server.records == []


async def test_a_record_that_has_another_name_by_now_is_left_alone(api: ApiRig, server: FakeDigitalOcean) -> None:
    """The list of our name does not show it, so its id has to be looked at before it is believed."""
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        handle = await provider.add_txt(zone, NAME, [ONE], 60)
        server.records[0].name = "theirs"
        await provider.remove_txt(zone, NAME, [ONE], handle)
    assert server.txt_values("theirs.dns.example.com") == [ONE]


async def test_a_service_that_keeps_no_connections_is_written_to(api: ApiRig, server: FakeDigitalOcean) -> None:
    """A write on a connection that was closed a moment ago is lost, each time anew."""
    server.keeps_connections = False
    async with open_provider(api, max_retries=0) as provider:
        zone = await provider.find_zone(NAME)
        for value in (ONE, TWO):
            await provider.add_txt(zone, NAME, [value], 60)
    assert server.txt_values(NAME) == [ONE, TWO]


async def test_a_date_without_a_zone_is_waited_for(api: ApiRig, server: FakeDigitalOcean) -> None:
    """Dates of HTTP are UTC, also in the old form that does not say so (RFC 9110 section 5.6.7)."""
    clock = JumpingClock()
    moment = clock.now() + timedelta(seconds=20)
    headers = {"Retry-After": moment.strftime("%a %b %d %H:%M:%S %Y")}
    server.fail("status", status=503, headers=headers)
    async with open_provider(api, clock=clock) as provider:
        await provider.find_zone(NAME)
    assert 15 < clock.pauses[0] <= 20
