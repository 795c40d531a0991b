"""Cloudflare: the contract, and what is special to its API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from scaivaultd_contrib_dns.cloudflare import KIND

from scaivaultd.plugin import (
    Checkable,
    PermanentError,
    ProviderAuthError,
    RateLimited,
    Zone,
    ZoneNotFound,
)
from scaivaultd.plugin.testing import (
    DnsProviderContract,
    FixedSecrets,
    JumpingClock,
    RecordingLog,
    Rig,
    open_provider,
    txt_value,
)
from tests.fakes.cloudflare import ACCOUNT, TOKEN, CloudflareZone, FakeCloudflare
from tests.fakes.descriptions import ApiRig, in_quotes

NAME = "_acme-challenge.www.dns.example.com"
ONE, TWO = txt_value(1), txt_value(2)


@pytest.fixture
async def server() -> AsyncIterator[FakeCloudflare]:
    async with FakeCloudflare() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def api(server: FakeCloudflare) -> ApiRig:
    settings = {"api_token_path": "dns/token", "api_base": server.api_base, "max_retries": 3}
    return ApiRig(KIND, server, settings, {"dns/token": TOKEN}, zone="dns.example.com", as_stored=in_quotes)


class TestCloudflareContract(DnsProviderContract):
    """What every provider has to do."""

    @pytest.fixture
    async def rig(self, api: ApiRig, server: FakeCloudflare) -> AsyncIterator[Rig]:
        server.page_size = 2
        yield api


async def test_the_longest_zone_wins_by_page_after_page(api: ApiRig, server: FakeCloudflare) -> None:
    """A zone on the last page is a zone as well; clients that read one page only do not find it."""
    server.knows_name_filter = False
    server.page_size = 1
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
    assert (zone.name, zone.id) == ("dns.example.com", "4" * 31 + "0")
    assert zone.name_servers == ("ada.ns.cloudflare.test", "bob.ns.cloudflare.test")


@pytest.mark.parametrize("knows_name_filter", [True, False])
async def test_answers_without_paging_are_read_until_nothing_new_comes(
    api: ApiRig, server: FakeCloudflare, knows_name_filter: bool
) -> None:
    """`result_info` is not required by the description."""
    server.knows_name_filter, server.shows_paging, server.page_size = knows_name_filter, False, 2
    for number in range(5):
        server.put(NAME, in_quotes(txt_value(number)))
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        await provider.remove_txt(zone, NAME, [txt_value(4)], None)
    assert sorted(server.txt_values(NAME)) == sorted(txt_value(number) for number in range(4))


async def test_a_name_without_a_zone_tells_how_many_zones_are_seen(api: ApiRig, server: FakeCloudflare) -> None:
    """None at all means that the token lacks a right, four that it is somebody else's zone."""
    async with open_provider(api) as provider:
        with pytest.raises(ZoneNotFound, match="sees 4 zones"):
            await provider.find_zone("_acme-challenge.elsewhere.test")
        server.tokens[TOKEN] = {"dns"}
        with pytest.raises(ZoneNotFound, match="sees 0 zones: it needs Zone:Zone:Read"):
            await provider.find_zone(NAME)


async def test_odd_text_never_reaches_the_name_filter(api: ApiRig, server: FakeCloudflare) -> None:
    """The filter knows operators such as `contains:`; a CNAME may lead to anything."""
    async with open_provider(api) as provider:
        zone = await provider.find_zone("contains:x.example.com")
    assert zone.name == "example.com"
    assert [each.query["name"] for each in server.asked("GET .*/zones$")] == ["example.com"]


async def test_an_account_narrows_the_search(api: ApiRig, server: FakeCloudflare) -> None:
    """The same name may stand in two accounts, pending in one."""
    server.zones.insert(0, CloudflareZone("5" * 31 + "0", "dns.example.com", account="acc2"))
    async with open_provider(api, account_id=ACCOUNT) as provider:
        zone = await provider.find_zone(NAME)
    assert zone.id == "4" * 31 + "0"


async def test_an_active_zone_is_preferred_and_a_private_one_never_taken(api: ApiRig, server: FakeCloudflare) -> None:
    """A pending copy does not answer in DNS, an internal zone answers to its own network only."""
    server.zones.insert(0, CloudflareZone("5" * 31 + "0", "dns.example.com", status="pending"))
    server.zones.insert(0, CloudflareZone("6" * 31 + "0", "www.dns.example.com", type="internal"))
    async with open_provider(api) as provider:
        assert (await provider.find_zone(NAME)).id == "4" * 31 + "0"


@pytest.mark.parametrize("status", ["pending", "moved"])
async def test_a_zone_that_is_not_active_is_warned_of(api: ApiRig, server: FakeCloudflare, status: str) -> None:
    """Otherwise the order just times out, and nobody knows why."""
    server.zones = [CloudflareZone("4" * 31 + "0", "dns.example.com", status=status)]
    log = RecordingLog()
    async with open_provider(api, log=log) as provider:
        assert (await provider.find_zone(NAME)).name == "dns.example.com"
    [line] = [each for each in log.lines if "zone_not_active" in each]
    assert line.startswith("warning") and status in line and "dns.example.com" in line


async def test_a_configured_zone_is_not_searched_for(api: ApiRig, server: FakeCloudflare) -> None:
    """It saves requests, and the right to list zones."""
    async with open_provider(api, zone_id="1" * 31 + "0") as provider:
        assert (await provider.find_zone(NAME)).name == "example.com"
        with pytest.raises(ZoneNotFound, match=r"is not in example\.com"):
            await provider.find_zone("_acme-challenge.example.org")
    assert server.asked("GET .*/zones$") == []


async def test_a_configured_zone_that_is_none_is_told(api: ApiRig, server: FakeCloudflare) -> None:
    """A typo in the id comes as a routing error of the service."""
    async with open_provider(api, zone_id="7" * 32) as provider:
        with pytest.raises(ZoneNotFound, match="no zone of the configured id"):
            await provider.find_zone(NAME)


async def test_without_the_right_to_read_zones_the_records_tell_the_name(api: ApiRig, server: FakeCloudflare) -> None:
    """The least rights there are: DNS:Edit and a configured id."""
    server.tokens[TOKEN] = {"dns"}
    server.put("www.dns.example.com", "192.0.2.1", kind="A")
    server.put("mail.dns.example.com", "192.0.2.1", kind="A")
    async with open_provider(api, zone_id="4" * 31 + "0") as provider:
        zone = await provider.find_zone(NAME)
        assert zone.name == "dns.example.com"
        with pytest.raises(ZoneNotFound, match="to judge by its records"):
            await provider.find_zone("_acme-challenge.www.example.org")
        await provider.add_txt(zone, NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]


async def test_a_record_that_lands_in_another_zone_is_taken_back(api: ApiRig, server: FakeCloudflare) -> None:
    """The service appends the zone to names outside of it; in an unnamed empty zone that shows only afterwards."""
    server.tokens[TOKEN] = {"dns"}
    elsewhere = "_acme-challenge.www.example.org"
    async with open_provider(api, zone_id="4" * 31 + "0") as provider:
        zone = await provider.find_zone(elsewhere)
        with pytest.raises(PermanentError, match="is not in the zone"):
            await provider.add_txt(zone, elsewhere, [ONE], 60)
    assert server.records == []


async def test_a_name_outside_of_the_zone_is_never_sent(api: ApiRig, server: FakeCloudflare) -> None:
    """It would be written under a wrong name."""
    async with open_provider(api) as provider:
        with pytest.raises(PermanentError, match="is not in the zone"):
            await provider.add_txt(Zone(name="example.org", id="2" * 31 + "0"), NAME, [ONE], 60)
    assert server.seen == []


async def test_zones_are_read_with_the_token_for_zones(api: ApiRig, server: FakeCloudflare) -> None:
    """The least rights with a search: one token reads all zones, the other writes into one."""
    server.tokens = {TOKEN: {"dns"}, "right-zone-token": {"zone"}}
    secrets = FixedSecrets({"dns/token": TOKEN, "dns/zones": "right-zone-token"})
    async with open_provider(api, secrets=secrets, zone_api_token_path="dns/zones") as provider:
        zone = await provider.find_zone(NAME)
        await provider.add_txt(zone, NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]


@pytest.mark.parametrize("stored", [f'"{ONE}"', ONE, f'"{ONE[:20]}" "{ONE[20:]}"'], ids=["quoted", "bare", "split"])
async def test_a_value_is_the_same_however_it_is_quoted(api: ApiRig, server: FakeCloudflare, stored: str) -> None:
    """The API takes both; comparing texts made other clients miss their own records."""
    server.put(NAME, stored)
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        await provider.add_txt(zone, NAME, [ONE], 60)
        assert len(server.records) == 1
        assert server.asked("POST") == []
        await provider.remove_txt(zone, NAME, [ONE], None)
    assert server.records == []


async def test_what_is_written_is_quoted_and_has_a_ttl_the_service_takes(api: ApiRig, server: FakeCloudflare) -> None:
    """The dashboard warns of unquoted texts; less than a minute is refused."""
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 5)
    [record] = server.records
    assert (record.content, record.ttl) == (f'"{ONE}"', 60)


async def test_a_new_value_gets_the_ttl_of_those_beside_it(api: ApiRig, server: FakeCloudflare) -> None:
    """A set has one TTL; servers differ in what they make of two."""
    server.put(NAME, in_quotes("other"), ttl=300)
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert [each.ttl for each in server.records] == [300, 300]


@pytest.mark.parametrize("status", [400, 403, 409])
async def test_a_duplicate_that_the_list_did_not_show_is_success(
    api: ApiRig, server: FakeCloudflare, status: int
) -> None:
    """Lists lag behind writes; the status of the answer varies, the code does not."""
    server.error_status = status
    server.hidden.add(server.put(NAME, in_quotes(ONE)))
    async with open_provider(api) as provider:
        handle = await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE, TWO], 60)
    assert server.txt_values(NAME) == [ONE, TWO]
    assert list(handle["ids"]) == [TWO]


async def test_a_value_that_lists_do_not_show_yet_is_removed_by_its_id(api: ApiRig, server: FakeCloudflare) -> None:
    """A challenge may be validated and cleaned up before the list has caught up."""
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        handle = await provider.add_txt(zone, NAME, [ONE, TWO], 60)
        server.hidden.add(server.records[1].id)
        await provider.remove_txt(zone, NAME, [ONE, TWO], handle)
    assert server.records == []


async def test_a_lost_answer_does_not_lose_the_id(api: ApiRig, server: FakeCloudflare) -> None:
    """Sent again blindly, the request would come back as a duplicate, which tells no id."""
    server.fail("drop_after", where="^POST ")
    async with open_provider(api) as provider:
        handle = await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert handle == {"ids": {ONE: server.records[0].id}}
    assert len(server.asked("POST")) == 1


async def test_a_record_with_another_content_by_now_is_left_alone(api: ApiRig, server: FakeCloudflare) -> None:
    """Whoever changed our record made it theirs; its id proves nothing."""
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        handle = await provider.add_txt(zone, NAME, [ONE], 60)
        server.records[0].content = in_quotes("theirs")
        await provider.remove_txt(zone, NAME, [ONE], handle)
    assert server.txt_values(NAME) == ["theirs"]


@pytest.mark.parametrize("status", [400, 404])
async def test_removing_what_went_meanwhile_is_success(api: ApiRig, server: FakeCloudflare, status: int) -> None:
    """81044 is what the service says of a record that somebody else deleted."""
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        handle = await provider.add_txt(zone, NAME, [ONE], 60)
        server.records.clear()
        server.error_status = status
        await provider.remove_txt(zone, NAME, [ONE], handle)
    assert len(server.asked("DELETE")) == 1


async def test_a_list_that_is_not_found_is_asked_for_once_more(api: ApiRig, server: FakeCloudflare) -> None:
    """A zone that was just made is not known everywhere at once."""
    server.lists_missing = 1
    clock = JumpingClock()
    async with open_provider(api, clock=clock) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]
    assert clock.pauses == [1.0]


async def test_a_cname_in_the_way_is_told_as_what_it_is(api: ApiRig, server: FakeCloudflare) -> None:
    """Cloudflare's own certificates delegate this very name; trying again does not help."""
    server.put(NAME, "x.dcv.cloudflare.test", kind="CNAME")
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(PermanentError, match="a CNAME or address record stands at this name") as caught:
            await provider.add_txt(zone, NAME, [ONE], 60)
    assert caught.value.code == "81053"
    assert len(server.asked("POST")) == 1


@pytest.mark.parametrize("status", [400, 403])
async def test_a_missing_right_is_told_by_its_code_whatever_the_status(
    api: ApiRig, server: FakeCloudflare, status: int
) -> None:
    """The same fault comes as 400 or 403; as 400 it must not look like a bad request."""
    server.error_status = status
    server.tokens[TOKEN] = {"zone"}
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(ProviderAuthError, match="lacks Zone:DNS:Edit") as caught:
            await provider.add_txt(zone, NAME, [ONE], 60)
    assert "10000" in caught.value.detail


async def test_a_code_inside_the_chain_counts(api: ApiRig, server: FakeCloudflare) -> None:
    """The outer code is a general one, and the text names the real reason."""
    server.tokens.clear()
    async with open_provider(api) as provider:
        with pytest.raises(ProviderAuthError, match="does not know the token, or the zone is outside of its scope"):
            await provider.find_zone(NAME)


async def test_throttling_is_told_with_the_time_that_the_header_gives(api: ApiRig, server: FakeCloudflare) -> None:
    """The service blocks for minutes: the host must wait that long, not five seconds."""
    headers = {"Ratelimit": '"default";r=0;t=240'}
    server.fail("status", times=9, status=429, headers=headers, body=b"{}", content_type="application/json")
    async with open_provider(api) as provider:
        with pytest.raises(RateLimited) as caught:
            await provider.find_zone(NAME)
    assert caught.value.retry_after == 240
    assert len(server.seen) == 1


async def test_throttling_by_code_alone_is_recognised(api: ApiRig, server: FakeCloudflare) -> None:
    """971 need not come with a 429."""
    body = b'{"success":false,"errors":[{"code":"971","message":null,"error_chain":null}]}'
    server.fail("status", status=400, headers={"Retry-After": "3"}, body=body, content_type="application/json")
    clock = JumpingClock()
    async with open_provider(api, clock=clock) as provider:
        await provider.find_zone(NAME)
    assert clock.pauses == [3.0]


async def test_an_error_in_an_answer_that_is_ok_is_an_error(api: ApiRig, server: FakeCloudflare) -> None:
    """`success` decides, not the status."""
    body = b'{"success":false,"errors":[{"code":9109,"message":"no"}],"messages":[],"result":null}'
    server.fail("status", status=200, body=body, content_type="application/json")
    async with open_provider(api) as provider:
        with pytest.raises(ProviderAuthError):
            await provider.find_zone(NAME)


@pytest.mark.parametrize("text", ["two words", "line\nbreak", "bl\u00e4tter"])
async def test_a_secret_that_can_be_no_token_is_refused_by_reference(
    api: ApiRig, server: FakeCloudflare, text: str
) -> None:
    """It would make an invalid header; the text of the error names the reference and not the secret."""
    async with open_provider(api, secrets=FixedSecrets({"dns/token": text})) as provider:
        with pytest.raises(ProviderAuthError, match="the secret dns/token is no token") as caught:
            await provider.find_zone(NAME)
    assert text not in caught.value.detail
    assert server.seen == []


@pytest.mark.parametrize("status", ["disabled", "expired"])
async def test_check_tells_a_token_that_is_not_active(api: ApiRig, server: FakeCloudflare, status: str) -> None:
    """The service knows, so the administrator should not have to guess."""
    server.token_status = status
    async with open_provider(api) as provider:
        assert isinstance(provider, Checkable)
        with pytest.raises(ProviderAuthError, match=f"the API token is {status}"):
            await provider.check()


async def test_check_takes_a_token_that_belongs_to_an_account(api: ApiRig, server: FakeCloudflare) -> None:
    """Such tokens fail where people's tokens are verified, and work everywhere else."""
    server.token_status = "unknown"
    async with open_provider(api) as provider:
        assert isinstance(provider, Checkable)
        await provider.check()
        server.zones.clear()
        with pytest.raises(ProviderAuthError, match="sees no zone"):
            await provider.check()


async def test_check_tries_the_writing_token_when_another_one_reads_zones(api: ApiRig, server: FakeCloudflare) -> None:
    """The list of zones says nothing about it."""
    server.tokens = {"right-zone-token": {"zone"}}
    secrets = FixedSecrets({"dns/token": TOKEN, "dns/zones": "right-zone-token"})
    async with open_provider(api, secrets=secrets, zone_api_token_path="dns/zones") as provider:
        assert isinstance(provider, Checkable)
        with pytest.raises(ProviderAuthError):
            await provider.check()


async def test_check_of_a_configured_zone_needs_no_right_to_read_zones(api: ApiRig, server: FakeCloudflare) -> None:
    """And it writes nothing."""
    server.tokens[TOKEN] = {"dns"}
    async with open_provider(api, zone_id="4" * 31 + "0") as provider:
        assert isinstance(provider, Checkable)
        await provider.check()
    assert {each.method for each in server.seen} == {"GET"}


@pytest.mark.parametrize("knows_name_filter", [True, False])
async def test_an_active_zone_above_one_that_is_not_active_is_taken(
    api: ApiRig, server: FakeCloudflare, knows_name_filter: bool
) -> None:
    """Until a zone is delegated to the service the world asks the one above it."""
    server.knows_name_filter = knows_name_filter
    server.zones[-1].status = "pending"
    log = RecordingLog()
    async with open_provider(api, log=log) as provider:
        assert (await provider.find_zone(NAME)).name == "example.com"
    assert any("zone_not_active" in each for each in log.lines)


async def test_names_shown_in_unicode_are_the_same_names(api: ApiRig, server: FakeCloudflare) -> None:
    """A zone would not be found, and a record that was just written be taken for one outside of it."""
    server.zones = [CloudflareZone("4" * 31 + "0", "xn--bltter-cua.example")]
    name = "_acme-challenge.xn--bltter-cua.example"
    unicode = "bl\u00e4tter.example"
    zone_document = {**server.zones[0].document(), "name": unicode}
    body = msgspec.json.encode({"success": True, "result": [zone_document]})
    server.fail("status", status=200, body=body, content_type="application/json", where="/zones$")
    server.fail("status", status=200, body=body, content_type="application/json", where="/zones$")
    async with open_provider(api) as provider:
        zone = await provider.find_zone(name)
        assert zone.name == "xn--bltter-cua.example"
        record = {"id": "a" * 32, "name": f"_acme-challenge.{unicode}", "type": "TXT", "content": in_quotes(ONE)}
        body = msgspec.json.encode({"success": True, "result": record})
        server.fail("status", status=200, body=body, content_type="application/json", where="^POST ")
        assert await provider.add_txt(zone, name, [ONE], 60) == {"ids": {ONE: "a" * 32}}
    assert server.asked("DELETE") == []


@pytest.mark.parametrize("status", [400, 404])
async def test_a_page_behind_the_last_one_may_be_refused(api: ApiRig, server: FakeCloudflare, status: int) -> None:
    """Without any total nobody knows which page is the last; that is no word about the zone."""
    server.shows_paging, server.page_size = False, 1
    for number in range(2):
        server.put(NAME, in_quotes(txt_value(number)))
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        server.odd_page_status = status
        await provider.remove_txt(zone, NAME, [txt_value(1)], None)
    assert server.txt_values(NAME) == [txt_value(0)]


@pytest.mark.parametrize("body", [b"", b"<html>maintenance</html>", b"{}", b'{"errors":null}'])
async def test_a_list_that_says_nothing_is_asked_for_again(api: ApiRig, server: FakeCloudflare, body: bytes) -> None:
    """Taken for an empty one it would leave a value behind for ever, or hide a zone."""
    server.put(NAME, in_quotes(ONE))
    async with open_provider(api) as provider:
        server.fail("status", status=200, body=body, content_type="application/json")
        zone = await provider.find_zone(NAME)
        assert zone.name == "dns.example.com"
        server.fail("status", status=200, body=body, content_type="application/json")
        await provider.remove_txt(zone, NAME, [ONE], None)
    assert server.records == []


async def test_a_record_that_has_another_name_by_now_is_left_alone(api: ApiRig, server: FakeCloudflare) -> None:
    """The list of our name does not show it, so its id has to be looked at before it is believed."""
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        handle = await provider.add_txt(zone, NAME, [ONE], 60)
        server.records[0].name = "theirs.dns.example.com"
        await provider.remove_txt(zone, NAME, [ONE], handle)
    assert server.txt_values("theirs.dns.example.com") == [ONE]


async def test_a_service_that_keeps_no_connections_is_written_to(api: ApiRig, server: FakeCloudflare) -> None:
    """A write on a connection that was closed a moment ago is lost, each time anew; so writes get one of their own."""
    server.keeps_connections = False
    async with open_provider(api, max_retries=0) as provider:
        zone = await provider.find_zone(NAME)
        for value in (ONE, TWO):
            await provider.add_txt(zone, NAME, [value], 60)
    assert server.txt_values(NAME) == [ONE, TWO]


async def test_a_token_that_the_service_repeats_is_in_no_text(api: ApiRig, server: FakeCloudflare) -> None:
    """Messages of the service are shown as they are, but for this."""
    body = b'{"success":false,"errors":[{"code":9109,"message":"no such token: %s"}]}' % TOKEN.encode()
    server.fail("status", times=9, status=403, body=body, content_type="application/json")
    async with open_provider(api) as provider:
        with pytest.raises(ProviderAuthError, match="no such token") as caught:
            await provider.find_zone(NAME)
    assert TOKEN not in caught.value.detail


async def test_throttling_behind_the_first_page_does_not_cut_a_list_off(api: ApiRig, server: FakeCloudflare) -> None:
    """It may come as a 400, which otherwise says that there is no such page."""
    server.shows_paging, server.page_size = False, 1
    for number in range(3):
        server.put(NAME, in_quotes(txt_value(number)))
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        ok = msgspec.json.encode({"success": True, "result": [server.records[0].document()]})
        server.fail("status", status=200, body=ok, content_type="application/json", where="GET .*/dns_records$")
        busy = msgspec.json.encode({"success": False, "errors": [{"code": 971, "message": "throttled"}]})
        server.fail("status", status=400, body=busy, content_type="application/json", where="GET .*/dns_records$")
        await provider.remove_txt(zone, NAME, [txt_value(2)], None)
    assert server.txt_values(NAME) == [txt_value(0), txt_value(1)]
