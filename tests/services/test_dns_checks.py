"""Trying a provider for real, step by step, and following a name without writing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.dns import CaaRecord, CaaSet
from scaivaultd.model.errors import DnsError, InvalidRequest, NotFound, RateLimited, StorageUnavailable
from scaivaultd.plugin import PermanentError, ProviderAuthError, TransientError
from scaivaultd.services.dns_checks import TESTS_AT_ONCE

CONTEXT = RequestContext(request_id="req_check")
NAME = "_acme-challenge.example.test"
FOREIGN = "v=spf1 -all"


async def tested(world: Any, **members: Any) -> Any:
    request = m.TestDnsProvider(**{"id": "main", "domain": "example.test", **members})
    return await world.checks.test(request, CONTEXT)


async def traced(world: Any, name: str = "example.test", **members: Any) -> Any:
    return await world.checks.trace(m.Trace(name=name, **members), CONTEXT)


def steps(reply: Any) -> dict[str, str]:
    return {step.name: step.status for step in reply.steps}


def detail(reply: Any, name: str) -> str:
    (text,) = [step.detail for step in reply.steps if step.name == name]
    return str(text)


async def nothing_is_left(world: Any) -> bool:
    await world.idle()
    return world.service.values() in ({}, {NAME: {FOREIGN}}) and await world.journal() == []


@pytest.fixture
async def world(dns_world: Any) -> Any:
    """One provider that can tell of itself, at a name where somebody else has a value."""
    await dns_world.provider(kind="signalling")
    dns_world.service.sets[NAME] = [FOREIGN]
    return dns_world


class TestTheTest:
    async def test_every_step_is_told_with_its_time(self, world: Any, name_servers: Any) -> None:
        """Whoever sets a provider up sees how far it goes, and how long it will take each time."""
        name_servers.rounds.extend([{"192.0.2.2": "absent"}] * 2)
        reply = await tested(world)
        assert reply.ok
        assert steps(reply) == dict.fromkeys(("open", "check", "route", "write", "live", "visible", "remove"), "ok")
        assert (reply.name, reply.record_name, reply.zone) == ("main", NAME, "example.test")
        by_name = {step.name: step for step in reply.steps}
        assert by_name["visible"].seconds > 0.5
        assert [each.answer for each in by_name["visible"].verdicts] == ["complete", "complete"]
        assert "2 addresses" in by_name["visible"].detail
        assert len(reply.value) == 43
        assert world.said("dns_provider.tested")[0]["ok"] is True
        assert await nothing_is_left(world)

    async def test_what_a_provider_cannot_tell_is_left_out(self, dns_world: Any) -> None:
        """A kind without a signal or a check is complete without."""
        await dns_world.provider()
        reply = await tested(dns_world)
        assert list(steps(reply)) == ["open", "check", "route", "write", "visible", "remove"]
        assert "no way to tell without writing" in detail(reply, "check")

    async def test_the_value_goes_where_the_challenge_would(self, world: Any, name_servers: Any) -> None:
        """The CNAME is part of what is tested; a wildcard is proven at its base."""
        name_servers.cnames["_acme-challenge.www.other.test"] = "validation.example.test"
        reply = await tested(world, domain="*.WWW.other.test")
        assert reply.ok
        assert reply.record_name == "validation.example.test"
        assert "_acme-challenge.www.other.test -> validation.example.test" in detail(reply, "route")

    async def test_without_a_domain_it_is_the_first_zone(self, dns_world: Any) -> None:
        """And where there is none, the question is sent back."""
        await dns_world.provider(zones=["example.test", "other.test"])
        assert (await tested(dns_world, domain=None)).record_name == NAME
        await dns_world.provider("no_zones")
        for domain, code in ((None, "missing"), ("192.0.2.1", "address_has_no_dns_01"), ("a b", "bad_character")):
            with pytest.raises(InvalidRequest) as refused:
                await tested(dns_world, id="no_zones", domain=domain)
            assert [(each.pointer[:7], each.code) for each in refused.value.fields] == [("/domain", code)]
        with pytest.raises(NotFound):
            await tested(dns_world, id="gone")

    async def test_all_servers_count_whatever_the_settings_say(self, dns_world: Any, name_servers: Any) -> None:
        """`skip` in the settings is what somebody wants to find out about."""
        await dns_world.provider(propagation="skip", propagation_failure="continue")
        name_servers.shows["192.0.2.2"] = "absent"
        reply = await tested(dns_world, timeout_seconds=5)
        assert not reply.ok
        assert steps(reply)["visible"] == "failed"

    @pytest.mark.parametrize(
        ("method", "meets", "failed", "says"),
        [
            ("open", PermanentError("no such region"), "open", "no such region"),
            ("check", ProviderAuthError("[10000]"), "check", "refuses the credentials: [10000]"),
            ("find_zone", PermanentError("no zone here"), "route", "no zone here"),
            ("add_txt", TransientError("503"), "write", "503"),
            ("add_txt", ValueError("secret-xyz"), "write", "broke (ValueError)"),
        ],
    )
    async def test_it_ends_at_the_first_step_that_fails(
        self, dns_world: Any, method: str, meets: Exception, failed: str, says: str
    ) -> None:
        """With the provider's own words; and what may have been written is removed."""
        await dns_world.provider(kind="signalling")
        dns_world.service.script[method].append(meets)
        reply = await tested(dns_world)
        assert not reply.ok
        assert [name for name, status in steps(reply).items() if status == "failed"] == [failed]
        assert says in detail(reply, failed)
        assert "visible" not in steps(reply)
        assert "secret-xyz" not in repr((reply, dns_world.logged))
        assert await nothing_is_left(dns_world)

    async def test_a_lost_answer_is_cleaned_up(self, world: Any, acts: Any) -> None:
        """The write failed, by what we know; the value is there all the same."""
        world.service.script["add_txt"].append(acts(TransientError("reset")))
        reply = await tested(world)
        assert steps(reply)["write"] == "failed"
        assert steps(reply)["remove"] == "ok"
        assert await nothing_is_left(world)

    async def test_a_server_that_does_not_show_it_is_named(self, world: Any, name_servers: Any) -> None:
        """With its answer, and the value is removed in this outcome too."""
        name_servers.shows["192.0.2.2"] = "refused"
        name_servers.zones["sub.example.test"] = ("192.0.2.2",)
        reply = await tested(world, timeout_seconds=5)
        assert not reply.ok
        (step,) = [each for each in reply.steps if each.name == "visible"]
        assert [(each.address, each.answer) for each in step.verdicts] == [("192.0.2.2", "refused")]
        assert "says refused" in step.detail
        assert steps(reply)["remove"] == "ok"
        assert await nothing_is_left(world)

    async def test_dns_that_stands_in_the_way_is_said(self, world: Any, name_servers: Any) -> None:
        """Nothing is written then."""
        name_servers.refuses[NAME] = DnsError("ns1 does not serve example.test", "lame_delegation")
        reply = await tested(world)
        assert detail(reply, "route") == "ns1 does not serve example.test"
        assert world.service.asked("add_txt") == []

    async def test_a_zone_that_the_world_asks_elsewhere_is_said(self, world: Any, name_servers: Any) -> None:
        """It is the most likely reason for what follows."""
        name_servers.zones["sub.example.test"] = ("192.0.2.9",)
        reply = await tested(world, domain="sub.example.test")
        assert "the world asks the servers of sub.example.test" in detail(reply, "route")

    async def test_a_removal_that_fails_is_told_and_goes_on_by_itself(self, world: Any) -> None:
        """The reply does not wait for a day; the job does."""
        world.service.script["remove_txt"].extend([TransientError("503")] * 2)
        reply = await tested(world)
        assert not reply.ok
        assert steps(reply)["remove"] == "failed"
        assert await nothing_is_left(world)

    @pytest.mark.parametrize("method", ["write", "see"])
    @pytest.mark.parametrize("provider_is_down", [False, True])
    async def test_one_that_is_cut_off_leaves_the_rest_to_the_journal(
        self, world: Any, name_servers: Any, method: str, provider_is_down: bool
    ) -> None:
        """The caller is gone or the daemon stops: it ends at once, and the value goes all the same."""
        gate = asyncio.Event()
        if method == "write":
            world.service.script["add_txt"].append(gate.wait)
        else:
            name_servers.before_look = gate.wait
        if provider_is_down:
            world.service.script["remove_txt"].append(TransientError("503"))
        test = asyncio.create_task(tested(world))
        await world.until(lambda: world.service.asked("add_txt") if method == "write" else name_servers.looks)
        test.cancel()
        await asyncio.wait({test})
        assert test.cancelled()
        gate.set()
        assert await nothing_is_left(world)

    async def test_one_whose_process_dies_is_swept_up(self, world: Any, name_servers: Any) -> None:
        """A test is no order, and nobody resumes it."""
        name_servers.before_look = asyncio.Event().wait
        test = asyncio.create_task(tested(world))
        await world.until(lambda: name_servers.looks)
        world.store.is_down = True
        test.cancel()
        with pytest.raises((StorageUnavailable, asyncio.CancelledError)):
            await test
        world.store.is_down = False
        await world.die()
        assert len(await world.journal()) == 1
        await world.records.sweep()
        assert await nothing_is_left(world)

    async def test_only_so_many_run_at_once(self, world: Any, name_servers: Any) -> None:
        """Each may take minutes and holds a connection of its caller."""
        gate = asyncio.Event()
        name_servers.before_look = gate.wait
        tests = [asyncio.create_task(tested(world)) for _ in range(TESTS_AT_ONCE)]
        await world.until(lambda: len(name_servers.looks) == TESTS_AT_ONCE)
        with pytest.raises(RateLimited):
            await tested(world)
        gate.set()
        assert all(each.ok for each in await asyncio.gather(*tests))
        assert (await tested(world)).ok
        assert await nothing_is_left(world)


class TestTheTrace:
    async def test_the_whole_way_is_shown_and_nothing_written(self, world: Any, name_servers: Any) -> None:
        """The first thing to look at when an order does not end."""
        name_servers.cnames["_acme-challenge.www.other.test"] = "validation.example.test"
        name_servers.caa_sets["www.other.test"] = CaaSet(
            owner="other.test", records=(CaaRecord(flags=0, tag="issue", value="ca.test"),)
        )
        reply = await traced(world, "*.www.other.test")
        assert (reply.name, reply.challenge_name) == ("*.www.other.test", "_acme-challenge.www.other.test")
        assert (reply.chain, reply.target, reply.zone) == (
            ["validation.example.test"],
            "validation.example.test",
            "example.test",
        )
        assert [each.addresses for each in reply.name_servers] == [("192.0.2.1",), ("192.0.2.2",)]
        assert [each.answer for each in reply.answers] == ["absent", "absent"]
        assert (reply.dns_provider.name, reply.dns_provider.zone) == ("main", "example.test")
        assert [each.name for each in reply.candidates] == ["main"]
        assert reply.caa.records[0].value == "ca.test"
        assert reply.problems == []
        assert world.service.asked("add_txt") == world.service.asked("remove_txt") == []
        assert await world.journal() == []

    async def test_everything_that_stands_in_the_way_is_a_sentence(self, world: Any, name_servers: Any) -> None:
        """Not only the first: whoever repairs one must see the next."""
        await world.provider("second", zones=["example.test"])
        await world.provider("third", token_path=None, zones=[])
        world.service.script["find_zone"].extend([TransientError("503")] * 2)
        name_servers.shows["192.0.2.2"] = "refused"
        name_servers.bogus_zones["example.test"] = "no DS matches"
        name_servers.caa_sets["example.test"] = DnsError("SERVFAIL for CAA", "unreachable")
        reply = await traced(world)
        text = "\n".join(reply.problems)
        assert "ns2.example.test (192.0.2.2): says refused" in text
        assert "DNSSEC of example.test: no DS matches" in text
        assert "SERVFAIL for CAA" in text
        assert "503" in text
        assert reply.caa is None
        assert reply.zone == "example.test"

    async def test_candidates_that_tie_are_all_shown(self, world: Any) -> None:
        """The order would fail with them; here they stand in a list."""
        world.clock.advance(1)
        await world.provider("second", zones=["example.test"])
        reply = await traced(world)
        assert sorted(each.name for each in reply.candidates) == ["main", "second"]
        assert reply.dns_provider is None
        assert any("several DNS providers serve example.test: main, second" in each for each in reply.problems)

    async def test_a_named_provider_is_the_one_that_is_shown(self, world: Any) -> None:
        """As in an issue request; also when it cannot."""
        await world.provider("second", zones=["example.test"])
        assert (await traced(world, dns_provider="second")).dns_provider.name == "second"
        reply = await traced(world, "elsewhere.test", dns_provider="second")
        assert (reply.dns_provider.name, reply.dns_provider.zone) == ("second", None)
        assert "is in none of 1 zones" in reply.dns_provider.detail
        with pytest.raises(NotFound):
            await traced(world, dns_provider="gone")

    async def test_no_way_at_all_still_shows_the_provider(self, world: Any, name_servers: Any) -> None:
        """DNS is broken, the API may be fine: both are told."""
        name_servers.refuses[NAME] = DnsError("CNAMEs go in a circle", "cname_loop")
        reply = await traced(world)
        assert (reply.target, reply.zone, reply.answers) == (None, None, [])
        assert reply.problems[0] == "CNAMEs go in a circle"
        assert reply.dns_provider.name == "main"

    async def test_a_zone_that_the_world_asks_elsewhere_is_a_problem(self, world: Any, name_servers: Any) -> None:
        """The provider would take the value, and nobody would ever see it."""
        name_servers.zones["sub.example.test"] = ("192.0.2.9",)
        reply = await traced(world, "sub.example.test")
        assert any("but the world asks the servers of sub.example.test" in each for each in reply.problems)

    @pytest.mark.parametrize("name", ["192.0.2.1", "a b", ""])
    async def test_what_is_no_name_is_refused(self, world: Any, name: str) -> None:
        """Before anybody is asked."""
        with pytest.raises(InvalidRequest) as refused:
            await traced(world, name)
        assert refused.value.fields[0].pointer.startswith("/name")

    async def test_a_name_as_people_write_it_is_followed_as_it_is_certified(
        self, world: Any, name_servers: Any
    ) -> None:
        """A-labels, lower case."""
        name_servers.zones["xn--bcher-kva.test"] = ("192.0.2.1",)
        assert (await traced(world, "Bücher.test")).challenge_name == "_acme-challenge.xn--bcher-kva.test"
