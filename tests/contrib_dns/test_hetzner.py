"""Hetzner: the contract, and what is special to its API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from scaivaultd_contrib_dns.hetzner import KIND

from scaivaultd.plugin import (
    Checkable,
    PermanentError,
    ProviderAuthError,
    RateLimited,
    TransientError,
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
from tests.fakes.descriptions import ApiRig, in_quotes
from tests.fakes.hetzner import TOKEN, FakeHetzner

NAME = "_acme-challenge.www.example.com"
ONE, TWO = txt_value(1), txt_value(2)


@pytest.fixture
async def server() -> AsyncIterator[FakeHetzner]:
    async with FakeHetzner() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def api(server: FakeHetzner) -> ApiRig:
    settings = {"api_token_path": "dns/token", "api_base": server.api_base, "max_retries": 3}
    return ApiRig(KIND, server, settings, {"dns/token": TOKEN}, zone="example.com", as_stored=in_quotes)


class TestHetznerContract(DnsProviderContract):
    """What every provider has to do."""

    @pytest.fixture
    async def rig(self, api: ApiRig, server: FakeHetzner) -> AsyncIterator[Rig]:
        yield api


async def test_the_zones_own_name_is_an_at_sign(api: ApiRig, server: FakeHetzner) -> None:
    """Encoded as `%40` it is not found."""
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone("example.com"), "example.com", [ONE], 60)
    assert len(server.asked("POST .*/rrsets/@/TXT/actions/add_records$")) == 1
    assert server.sets["example.com", "@"].values == [f'"{ONE}"']


async def test_a_new_set_gets_a_ttl_the_service_takes(api: ApiRig, server: FakeHetzner) -> None:
    """Less than a minute is refused."""
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 5)
    assert server.sets["example.com", "_acme-challenge.www"].ttl == 60


@pytest.mark.parametrize("ttl", [300, None])
async def test_a_set_keeps_its_ttl(api: ApiRig, server: FakeHetzner, ttl: int | None) -> None:
    """Another one is refused; none at all means that of the zone."""
    server.put(NAME, in_quotes("other"), ttl=ttl)
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.sets["example.com", "_acme-challenge.www"].ttl == ttl
    assert server.txt_values(NAME) == ["other", ONE]
    assert len(server.asked("POST")) == 1


async def test_a_set_made_meanwhile_with_another_ttl_is_looked_at_again(api: ApiRig, server: FakeHetzner) -> None:
    """Somebody else wrote between our look and our change: 422 for a TTL that was right a moment ago."""
    server.put(NAME, in_quotes("other"), ttl=300)
    server.hidden_once.add("_acme-challenge.www")
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == ["other", ONE]
    assert [b'"ttl":60' in each.body for each in server.asked("POST")] == [True, False]


async def test_a_ttl_that_is_not_taken_back_is_left_to_the_service(api: ApiRig, server: FakeHetzner) -> None:
    """The set shows one TTL and wants another: without any the change goes through."""
    server.put(NAME, in_quotes("other"), ttl=300)
    server.ttl_it_takes = 301
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == ["other", ONE]
    assert [b'"ttl":300' in each.body for each in server.asked("POST")] == [True, False]


@pytest.mark.parametrize(
    "error", [(409, "uniqueness_error"), (422, "invalid_input"), (422, "record_exists"), (409, "duplicate")]
)
async def test_a_value_that_is_there_already_is_success_after_a_look(
    api: ApiRig, server: FakeHetzner, error: tuple[int, str]
) -> None:
    """The code for duplicates is not documented, so the set decides."""
    server.duplicate_error = error
    server.put(NAME, in_quotes(ONE))
    server.hidden_once.add("_acme-challenge.www")
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]
    assert len(server.asked("POST")) == 1


async def test_of_several_values_those_that_are_missing_are_added(api: ApiRig, server: FakeHetzner) -> None:
    """One duplicate refuses the whole change, so the next one is without it."""
    server.put(NAME, in_quotes(ONE))
    server.hidden_once.add("_acme-challenge.www")
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE, TWO], 60)
    assert sorted(server.txt_values(NAME)) == sorted([ONE, TWO])


async def test_a_refusal_that_a_look_does_not_explain_is_told(api: ApiRig, server: FakeHetzner) -> None:
    """Something else is wrong: asking again in the same way will not help."""
    body = (
        b'{"error":{"code":"invalid_input","message":"bad","details":{"fields":[{"name":"x","messages":["y","z"]}]}}}'
    )
    server.fail("status", times=9, status=422, body=body, content_type="application/json", where="POST")
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(PermanentError, match=r"invalid_input: bad \(x: y, z\)") as caught:
            await provider.add_txt(zone, NAME, [ONE], 60)
    assert caught.value.code == "invalid_input"
    assert len(server.asked("POST")) == 1


async def test_a_value_that_went_meanwhile_is_success(api: ApiRig, server: FakeHetzner) -> None:
    """Removing what is not there is an error at this service; a look tells that all is well."""
    server.put(NAME, in_quotes(ONE))
    server.put(NAME, in_quotes(TWO))
    server.going["_acme-challenge.www"] = in_quotes(ONE)
    async with open_provider(api) as provider:
        await provider.remove_txt(await provider.find_zone(NAME), NAME, [ONE], None)
    assert server.txt_values(NAME) == [TWO]
    assert len(server.asked("POST")) == 1


async def test_a_set_that_went_meanwhile_is_success(api: ApiRig, server: FakeHetzner) -> None:
    """The same with 404."""
    server.put(NAME, in_quotes(ONE))
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        server.fail("status", status=404, body=b"{}", content_type="application/json", where="POST")
        await provider.remove_txt(zone, NAME, [ONE], None)
    assert len(server.asked("POST")) == 1


@pytest.mark.parametrize("stored", [f'"{ONE}"', f'"{ONE[:20]}" "{ONE[20:]}"'], ids=["one", "split"])
async def test_a_value_is_removed_in_the_spelling_of_the_service(api: ApiRig, server: FakeHetzner, stored: str) -> None:
    """Several strings are one value, but the service compares texts."""
    server.put(NAME, stored)
    async with open_provider(api) as provider:
        await provider.remove_txt(await provider.find_zone(NAME), NAME, [ONE], None)
    assert server.txt_values(NAME) == []


async def test_a_change_whose_answer_is_lost_is_looked_for_before_it_is_asked_for_again(
    api: ApiRig, server: FakeHetzner
) -> None:
    """Each blind repetition is an error of the service, and one more lock of the zone."""
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        server.fail("drop_after", where="^POST ")
        await provider.add_txt(zone, NAME, [ONE], 60)
        server.fail("drop_after", where="^POST ")
        await provider.remove_txt(zone, NAME, [ONE], None)
    assert server.sets == {}
    assert len(server.asked("POST")) == 2


async def test_a_locked_zone_is_waited_for(api: ApiRig, server: FakeHetzner) -> None:
    """423 says that another action is running: it ends."""
    body = b'{"error":{"code":"locked","message":"another action is running"}}'
    server.fail("status", times=3, status=423, body=body, content_type="application/json", where="POST")
    clock = JumpingClock()
    async with open_provider(api, clock=clock) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]
    assert len(server.asked("POST")) == 4


async def test_many_names_of_one_zone_do_not_lock_each_other_out(api: ApiRig, server: FakeHetzner) -> None:
    """Twenty orders at once: with a change at a time, tries would be used up against our own changes."""
    server.locked_zones = True
    names = [f"_acme-challenge.host{number}.example.com" for number in range(20)]
    async with open_provider(api, max_retries=2) as provider:
        zone = await provider.find_zone(NAME)
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(provider.add_txt(zone, name, [ONE], 60))
    assert all(server.txt_values(name) == [ONE] for name in names)


@pytest.mark.parametrize(("status", "code"), [(423, "protected"), (422, "incorrect_zone_mode"), (410, "deprecated")])
async def test_a_final_refusal_is_not_repeated(api: ApiRig, server: FakeHetzner, status: int, code: str) -> None:
    """Of the two kinds of 423 one never passes."""
    body = b'{"error":{"code":"%s","message":"no"}}' % code.encode()
    server.fail("status", times=9, status=status, body=body, content_type="application/json", where="POST")
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(PermanentError) as caught:
            await provider.add_txt(zone, NAME, [ONE], 60)
    assert caught.value.code == code
    assert len(server.asked("POST")) == 1


@pytest.mark.parametrize(("status", "code"), [(409, "conflict"), (403, "maintenance"), (422, "service_error")])
async def test_a_passing_refusal_is_repeated(api: ApiRig, server: FakeHetzner, status: int, code: str) -> None:
    """The code says so, not the status: a 403 for maintenance is no matter of rights."""
    body = b'{"error":{"code":"%s","message":"soon"}}' % code.encode()
    server.fail("status", status=status, body=body, content_type="application/json", where="POST")
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]


async def test_an_action_is_waited_for_with_growing_pauses(api: ApiRig, server: FakeHetzner) -> None:
    """Before it is done, DNS cannot have the value, and every look costs of the hourly budget."""
    server.polls = 8
    clock = JumpingClock()
    async with open_provider(api, clock=clock) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert len(server.asked("GET .*/actions/1$")) == 8
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == 5.0


async def test_an_action_that_fails_is_told_with_its_code(api: ApiRig, server: FakeHetzner) -> None:
    """201 is a promise only."""
    server.action_error = "action_failed"
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(TransientError, match=r"took the change and then failed.*action_failed: it did not work"):
            await provider.add_txt(zone, NAME, [ONE], 60)
        server.action_error = "incorrect_zone_mode"
        with pytest.raises(PermanentError):
            await provider.add_txt(zone, NAME, [ONE], 60)


async def test_an_action_that_never_ends_is_given_up(api: ApiRig, server: FakeHetzner) -> None:
    """The host decides whether to come back."""
    server.polls = 10_000
    clock = JumpingClock()
    async with open_provider(api, clock=clock) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(TransientError, match="is not done after 120 s"):
            await provider.add_txt(zone, NAME, [ONE], 60)
    assert 120 <= sum(clock.pauses) < 130


async def test_an_action_that_is_forgotten_is_taken_as_done(api: ApiRig, server: FakeHetzner) -> None:
    """The name servers are asked anyway."""
    server.fail("status", status=404, where="/actions/1$", body=b"{}", content_type="application/json")
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]


async def test_more_values_than_one_change_takes_are_sent_in_several(api: ApiRig, server: FakeHetzner) -> None:
    """Fifty records are the most that one action takes."""
    values = [txt_value(number) for number in range(60)]
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        await provider.add_txt(zone, NAME, values, 60)
        assert server.txt_values(NAME) == values
        await provider.remove_txt(zone, NAME, values, None)
    assert server.sets == {}


async def test_a_token_of_the_old_api_is_recognised_and_said(api: ApiRig, server: FakeHetzner) -> None:
    """Thousands of configurations still hold one: a plain 401 sends people looking in the wrong place."""
    async with open_provider(api, secrets=FixedSecrets({"dns/token": "a" * 32})) as provider:
        with pytest.raises(ProviderAuthError, match="old DNS Console API") as caught:
            await provider.find_zone(NAME)
    assert "a" * 32 not in caught.value.detail


async def test_a_token_for_reading_only_is_told(api: ApiRig, server: FakeHetzner) -> None:
    """The rights of a token are not shown anywhere later."""
    server.tokens[TOKEN] = {"read"}
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(ProviderAuthError, match="Read & Write"):
            await provider.add_txt(zone, NAME, [ONE], 60)


async def test_a_full_budget_far_away_is_not_waited_for(api: ApiRig, server: FakeHetzner) -> None:
    """`RateLimit-Reset` is an hour off, but a request is earned each second."""
    server.faults.append(server.throttled)
    clock = JumpingClock()
    server.throttled.times = 2
    async with open_provider(api, clock=clock) as provider:
        await provider.find_zone(NAME)
    assert 0 < sum(clock.pauses) < 10


async def test_throttling_for_long_is_told(api: ApiRig, server: FakeHetzner) -> None:
    """In the contract's words."""
    server.fail("status", times=99, status=429)
    async with open_provider(api) as provider:
        with pytest.raises(RateLimited):
            await provider.find_zone(NAME)


async def test_a_secondary_zone_is_not_taken(api: ApiRig, server: FakeHetzner) -> None:
    """It is transferred from elsewhere: another provider may be the one that can write it."""
    server.zones[1].mode = "secondary"
    async with open_provider(api) as provider:
        with pytest.raises(ZoneNotFound, match="secondary"):
            await provider.find_zone(NAME)


@pytest.mark.parametrize(
    ("status", "warned"), [("valid", False), ("unknown", False), ("lame", True), ("invalid", True)]
)
async def test_a_zone_that_nobody_asks_is_warned_of(
    api: ApiRig, server: FakeHetzner, status: str, warned: bool
) -> None:
    """It exists here, but the parent zone sends the world somewhere else."""
    server.zones[1].delegation_status = status
    log = RecordingLog()
    async with open_provider(api, log=log) as provider:
        zone = await provider.find_zone(NAME)
    assert zone == Zone(
        name="example.com", id="12", name_servers=("hydrogen.ns.hetzner.test", "oxygen.ns.hetzner.test")
    )
    assert any("zone_not_delegated" in each for each in log.lines) is warned


async def test_a_configured_zone_is_the_only_one(api: ApiRig, server: FakeHetzner) -> None:
    """And a wrong one is told by its name."""
    async with open_provider(api, zone="Example.com.") as provider:
        assert (await provider.find_zone(NAME)).id == "12"
        with pytest.raises(ZoneNotFound, match=r"not in the configured zone example\.com"):
            await provider.find_zone("_acme-challenge.example.org")
    async with open_provider(api, zone="gone.test") as provider:
        with pytest.raises(ZoneNotFound, match=r"the configured zone gone\.test is not in this Hetzner project"):
            await provider.find_zone("_acme-challenge.gone.test")


async def test_a_name_without_a_zone_tells_how_many_there_are(api: ApiRig, server: FakeHetzner) -> None:
    """A token of another project is the usual reason."""
    async with open_provider(api) as provider:
        with pytest.raises(ZoneNotFound, match="it has 3 zones"):
            await provider.find_zone("_acme-challenge.elsewhere.test")


async def test_nulls_and_numbers_in_quotes_are_read(api: ApiRig, server: FakeHetzner) -> None:
    """Members may be null, missing or new."""
    body = b'{"zone":{"id":"12","name":null,"mode":null,"authoritative_nameservers":null,"new":[]}}'
    server.fail("status", status=200, body=body, content_type="application/json")
    rrset = b'{"rrset":{"ttl":"300","records":[null,{"value":null},{"value":"\\"%s\\""}]}}' % ONE.encode()
    server.fail("status", status=200, body=rrset, content_type="application/json", where="/rrsets/")
    async with open_provider(api) as provider:
        zone = await provider.find_zone("example.com")
        assert (zone.id, zone.name) == ("12", "example.com")
        await provider.add_txt(zone, NAME, [ONE], 60)
    assert server.asked("POST") == []


async def test_check_finds_a_project_without_zones(api: ApiRig, server: FakeHetzner) -> None:
    """The token works, and is of no use."""
    async with open_provider(api) as provider:
        assert isinstance(provider, Checkable)
        await provider.check()
        server.zones.clear()
        with pytest.raises(ZoneNotFound, match="has no zones"):
            await provider.check()


async def test_check_looks_at_the_configured_zone(api: ApiRig, server: FakeHetzner) -> None:
    """And it writes nothing."""
    async with open_provider(api, zone="example.com") as provider:
        assert isinstance(provider, Checkable)
        await provider.check()
        server.zones[1].mode = "secondary"
        with pytest.raises(ZoneNotFound):
            await provider.check()
    assert {each.method for each in server.seen} == {"GET"}


@pytest.mark.parametrize(
    "body", [b'{"error":{"code":"locked","message":"x"}}', b"", b"<html>", b'{"error":null}'], ids=str
)
async def test_a_lock_is_waited_for_longer_than_a_fault(api: ApiRig, server: FakeHetzner, body: bytes) -> None:
    """Nothing is broken: somebody else is at work in the zone. The status alone says so, too."""
    server.fail("status", times=8, status=423, body=body, content_type="application/json", where="POST")
    async with open_provider(api, max_retries=1) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]


async def test_a_lock_that_stays_is_told_as_one_that_may_go(api: ApiRig, server: FakeHetzner) -> None:
    """The host comes back later."""
    server.fail("status", times=999, status=423, body=b"", where="POST")
    clock = JumpingClock()
    async with open_provider(api, clock=clock) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(TransientError, match="busy with another change"):
            await provider.add_txt(zone, NAME, [ONE], 60)
    assert sum(clock.pauses) < 60


async def test_changes_of_a_zone_wait_for_a_long_action_of_another_one(api: ApiRig, server: FakeHetzner) -> None:
    """The zone is locked by ourselves, for as long as the action takes."""
    server.locked_zones, server.polls = True, 20
    names = [NAME, "_acme-challenge.mail.example.com"]
    async with open_provider(api, max_retries=0) as provider:
        zone = await provider.find_zone(NAME)
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(provider.add_txt(zone, name, [ONE], 60))
    assert [server.txt_values(name) for name in names] == [[ONE], [ONE]]
    assert len(server.asked("POST")) == 2


@pytest.mark.parametrize("status", [409, 422])
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error":{"code":7,"message":{}}}'], ids=str)
async def test_a_refusal_without_words_is_looked_at_as_well(
    api: ApiRig, server: FakeHetzner, status: int, body: bytes
) -> None:
    """The status is enough to doubt it."""
    server.put(NAME, in_quotes(ONE))
    server.hidden_once.add("_acme-challenge.www")
    server.fail("status", status=status, body=body, content_type="application/json", where="POST")
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]


async def test_a_duplicate_that_is_not_shown_yet_is_looked_for_again(api: ApiRig, server: FakeHetzner) -> None:
    """Another program's action is under way: refused as being there already, and shown when that is done."""
    server.fail("status", status=404, times=3, body=b"{}", content_type="application/json", where="GET .*/rrsets/")
    server.put(NAME, in_quotes(ONE))
    clock = JumpingClock()
    async with open_provider(api, clock=clock) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert server.txt_values(NAME) == [ONE]
    assert len(server.asked("POST")) == 1
    assert clock.pauses == [1.0, 1.0]


@pytest.mark.parametrize("code", ["token_readonly", "", "new_code"])
async def test_any_403_is_a_matter_of_rights(api: ApiRig, server: FakeHetzner, code: str) -> None:
    """But for the codes that say otherwise; a token for reading has a code of its own."""
    body = b'{"error":{"code":"%s","message":"no"}}' % code.encode()
    server.fail("status", times=9, status=403, body=body, content_type="application/json", where="POST")
    async with open_provider(api) as provider:
        zone = await provider.find_zone(NAME)
        with pytest.raises(ProviderAuthError, match="Read & Write"):
            await provider.add_txt(zone, NAME, [ONE], 60)


@pytest.mark.parametrize("body", [b"", b"<html>maintenance</html>", b"{}"])
async def test_an_answer_that_says_nothing_is_asked_for_again(api: ApiRig, server: FakeHetzner, body: bytes) -> None:
    """Taken for a zone it would be one that is none, taken for an empty set it would leave a value behind."""
    server.put(NAME, in_quotes(ONE))
    async with open_provider(api) as provider:
        server.fail("status", status=200, body=body, content_type="application/json")
        zone = await provider.find_zone(NAME)
        assert zone.name == "example.com"
        server.fail("status", status=200, body=body, content_type="application/json")
        await provider.remove_txt(zone, NAME, [ONE], None)
    assert server.sets == {}


async def test_a_zone_that_is_null_is_none(api: ApiRig, server: FakeHetzner) -> None:
    """The next name upwards is asked for."""
    server.fail("status", status=200, body=b'{"zone":null}', content_type="application/json")
    async with open_provider(api) as provider:
        assert (await provider.find_zone(NAME)).name == "example.com"


async def test_a_service_that_keeps_no_connections_is_written_to(api: ApiRig, server: FakeHetzner) -> None:
    """A write on a connection that was closed a moment ago is lost, each time anew."""
    server.keeps_connections = False
    async with open_provider(api, max_retries=0) as provider:
        zone = await provider.find_zone(NAME)
        for value in (ONE, TWO):
            await provider.add_txt(zone, NAME, [value], 60)
    assert server.txt_values(NAME) == [ONE, TWO]


@pytest.mark.parametrize("status", [200, 409])
async def test_an_action_that_is_answered_for_oddly_is_asked_for_again(
    api: ApiRig, server: FakeHetzner, status: int
) -> None:
    """The change is under way; one odd answer says nothing about it."""
    body = b"<html>" if status == 200 else b'{"error":{"code":"conflict","message":"busy"}}'
    server.fail("status", status=status, body=body, content_type="application/json", where="/actions/1$")
    async with open_provider(api) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
    assert len(server.asked("/actions/1$")) == 2
