"""TXT values: written down before they are written, shared, counted, and taken away exactly, whoever dies when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.dns import PropagationOverride
from scaivaultd.model.errors import DnsError, DnsPropagationTimeout, DnsProviderError
from scaivaultd.plugin import LostAnswer, ProviderAuthError, TransientError
from scaivaultd.services import txt_records
from scaivaultd.services.documents import TXT_RECORDS, txt_record_id
from scaivaultd.services.txt_records import PLACE_SECONDS, REMOVAL_PAUSES_SECONDS, REMOVAL_TRIES, VALUES_AT_ONCE

CONTEXT = RequestContext(request_id="req_txt")
NAME = "_acme-challenge.example.test"
FOREIGN = "v=spf1 include:other.test ~all"


async def users_of(world: Any) -> dict[str, tuple[str, ...]]:
    """Who needs which value, by the journal."""
    return {record.value: record.users for record in await world.journal()}


async def journalled(world: Any, user: str) -> None:
    """Wait until `user` has said that it needs something."""
    async with asyncio.timeout(10):
        while not any(user in record.users for record in await world.journal()):
            pass


async def written_together(world: Any, respond_with: Any, number: int) -> None:
    """Write values of so many orders; all but the first wait until that is written."""
    gate = asyncio.Event()
    world.service.script["add_txt"].append(gate.wait)
    puts = []
    for order in range(number):
        puts.append(asyncio.create_task(world.records.put(respond_with(order_id=f"o{order}"), f"v{order}")))
        await journalled(world, f"o{order}:t")
        await world.until(lambda: world.service.asked("add_txt"))
    gate.set()
    await asyncio.gather(*puts)


async def taken_away(world: Any) -> bool:
    """Whether nothing of ours is left, in DNS or in the journal."""
    await world.idle()
    return bool(world.service.values() == {} and await world.journal() == [])


def keys_of(changes: Sequence[Any]) -> list[str]:
    return [each.key for each in changes]


@pytest.fixture
async def world(dns_world: Any) -> Any:
    await dns_world.provider()
    return dns_world


class TestWriting:
    async def test_a_value_is_in_the_journal_before_the_provider_hears_of_it(
        self, world: Any, respond_with: Any
    ) -> None:
        """What a crash leaves in DNS must be known to somebody."""
        seen: list[Any] = []

        async def look() -> None:
            seen.extend(await world.journal())

        world.service.script["add_txt"].append(look)
        await world.records.put(respond_with(), "v1")
        (before,) = seen
        assert (before.record_name, before.value, before.users) == (NAME, "v1", ("order_1:t",))
        assert (before.zone_name, before.zone_id, before.handle) == ("example.test", "Z1", None)
        (after,) = await world.journal()
        assert after.handle is not None
        assert world.service.values() == {NAME: {"v1"}}

    async def test_nothing_is_written_that_cannot_be_written_down(self, world: Any, respond_with: Any) -> None:
        """A full disk must not leave values that nobody remembers."""

        async def fail(changes: Any) -> None:
            world.store.is_down = True
            world.store._check()

        world.store.before_commit = fail
        with pytest.raises(Exception, match="disk is full"):
            await world.records.put(respond_with(), "v1")
        assert world.service.asked("add_txt") == []

    async def test_put_returns_when_every_server_shows_it(
        self, world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """Not before: the CA looks within milliseconds."""
        name_servers.rounds.extend([{"192.0.2.2": "absent"}] * 3)
        await world.records.put(respond_with(), "v1")
        assert len(name_servers.looks) == 5

    async def test_the_same_again_changes_nothing(self, world: Any, respond_with: Any) -> None:
        """A restart puts everything once more."""
        for _ in range(2):
            await world.records.put(respond_with(), "v1")
        assert await users_of(world) == {"v1": ("order_1:t",)}
        assert world.service.sets == {NAME: ["v1"]}

    async def test_an_error_names_the_identifier(self, world: Any, respond_with: Any) -> None:
        """An order has many names."""
        world.service.script["add_txt"].append(ProviderAuthError("no right"))
        with pytest.raises(DnsProviderError) as failed:
            await world.records.put(respond_with(), "v1")
        assert failed.value.identifier == "example.test"

    async def test_those_who_share_a_write_each_hear_of_their_own_name(
        self, world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """Delegated names share a record and its failure; each order must blame its own name."""
        names = [f"h{n}.example.test" for n in range(4)]
        name_servers.cnames["_acme-challenge.first.example.test"] = "shared.example.test"
        for name in names:
            name_servers.cnames[f"_acme-challenge.{name}"] = "shared.example.test"
        gate = asyncio.Event()
        world.service.script["add_txt"].append(gate.wait)
        world.service.always["add_txt"] = ProviderAuthError("no right")
        writing = asyncio.create_task(world.records.put(respond_with("first.example.test"), "v"))
        await world.until(lambda: world.service.asked("add_txt"))
        puts = [
            asyncio.create_task(world.records.put(respond_with(name, order_id=f"order_{name}"), f"v {name}"))
            for name in names
        ]
        for name in names:
            await journalled(world, f"order_{name}:t")
        gate.set()
        errors = await asyncio.gather(*puts, return_exceptions=True)
        await writing
        assert len(world.service.asked("add_txt")) == 2, "nothing was shared"
        assert [getattr(each, "identifier", each) for each in errors] == names
        assert {each.detail for each in errors if isinstance(each, DnsProviderError)} == {
            "DNS provider main: refuses the credentials: no right"
        }

    async def test_what_came_back_wrong_is_found_by_the_name_servers(self, world: Any, respond_with: Any) -> None:
        """The provider's word alone is not believed."""
        world.service.writes = lambda value: value[:-1]
        with pytest.raises(DnsPropagationTimeout, match="says absent"):
            await world.records.put(respond_with(), "v1")

    async def test_what_was_only_promised_is_found_too(self, world: Any, respond_with: Any, instead: Any) -> None:
        """Some services answer yes and ignore the change."""
        world.service.script["add_txt"].append(instead({}))
        with pytest.raises(DnsPropagationTimeout):
            await world.records.put(respond_with(), "v1")

    async def test_a_write_goes_on_when_its_order_is_torn(self, world: Any, respond_with: Any) -> None:
        """Half a write is worse than a whole one: it ends, and can be taken away."""
        gate = asyncio.Event()
        world.service.script["add_txt"].append(gate.wait)
        put = asyncio.create_task(world.records.put(respond_with(), "v1"))
        await world.until(lambda: world.service.asked("add_txt"))
        put.cancel()
        await asyncio.wait({put})
        assert put.cancelled()
        await world.records.release("order_1:t")
        gate.set()
        assert await taken_away(world)


class TestSharing:
    async def test_two_orders_share_a_value_and_the_last_takes_it_away(self, world: Any, respond_with: Any) -> None:
        """CAs reuse pending authorizations: the value of one order may be that of another."""
        one, two = respond_with(order_id="order_1"), respond_with(order_id="order_2")
        await world.records.put(one, "v1")
        await world.records.put(two, "v1")
        await world.records.remove(one, "v1")
        await world.idle()
        assert world.service.values() == {NAME: {"v1"}}
        assert await users_of(world) == {"v1": ("order_2:t",)}
        await world.records.remove(two, "v1")
        assert await taken_away(world)

    async def test_two_values_of_one_name_come_and_go_on_their_own(
        self, world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """Wildcard and apex: the same name, and each needs its own."""
        apex, wildcard = respond_with(token="a"), respond_with(token="w")
        await asyncio.gather(world.records.put(apex, "va"), world.records.put(wildcard, "vw"))
        assert world.service.values() == {NAME: {"va", "vw"}}
        assert name_servers.looks[-1][2] == {"va", "vw"}, "a server may have one of them and not yet the other"
        await world.records.remove(apex, "va")
        await world.idle()
        assert world.service.values() == {NAME: {"vw"}}
        await world.records.remove(wildcard, "vw")
        assert await taken_away(world)

    async def test_values_of_others_stay(self, world: Any, respond_with: Any) -> None:
        """The name may be used by other programs, by hand, by another ACME client."""
        world.service.sets[NAME] = [FOREIGN]
        await world.records.put(respond_with(), "v1")
        await world.records.remove(respond_with(), "v1")
        await world.idle()
        assert world.service.sets == {NAME: [FOREIGN]}

    async def test_values_that_wait_for_the_same_name_are_written_together(self, world: Any, respond_with: Any) -> None:
        """Twenty orders are two or three requests, not twenty, for services that count them."""
        await written_together(world, respond_with, 20)
        assert world.service.values() == {NAME: {f"v{n}" for n in range(20)}}
        assert len(world.service.asked("add_txt")) == 2
        assert all(record.handle is not None for record in await world.journal())

    async def test_a_torn_order_does_not_tear_the_write_it_shares(self, world: Any, respond_with: Any) -> None:
        """The others wait for the same request."""
        gate = asyncio.Event()
        world.service.script["add_txt"].extend([gate.wait, None])
        responses = [respond_with(order_id=f"o{n}") for n in range(3)]
        puts = []
        for number, response in enumerate(responses):
            puts.append(asyncio.create_task(world.records.put(response, f"v{number}")))
            await journalled(world, f"o{number}:t")
        await world.until(lambda: world.service.asked("add_txt"))
        puts[1].cancel()
        await asyncio.wait({puts[1]})
        gate.set()
        await asyncio.gather(puts[0], puts[2])
        assert ("add", ["v1", "v2"], None) in world.service.batches

    async def test_a_value_that_is_needed_again_during_its_removal_is_there_afterwards(
        self, world: Any, respond_with: Any
    ) -> None:
        """The next order must not lose what the last one is just taking away."""
        gate = asyncio.Event()
        one, two = respond_with(order_id="order_1"), respond_with(order_id="order_2")
        await world.records.put(one, "v1")
        world.service.script["remove_txt"].append(gate.wait)
        await world.records.release("order_1:t")
        await world.until(lambda: world.service.asked("remove_txt"))
        put = asyncio.create_task(world.records.put(two, "v1"))
        await journalled(world, "order_2:t")
        gate.set()
        await put
        await world.idle()
        assert world.service.values() == {NAME: {"v1"}}
        assert await users_of(world) == {"v1": ("order_2:t",)}
        await world.records.remove(two, "v1")
        assert await taken_away(world)

    async def test_a_value_that_is_needed_again_before_its_removal_stays(self, world: Any, respond_with: Any) -> None:
        """The job looks again when its turn has come."""
        one, two = respond_with(order_id="order_1"), respond_with(order_id="order_2")
        await world.records.put(one, "v1")
        gate = asyncio.Event()
        world.service.script["add_txt"].append(gate.wait)
        other = asyncio.create_task(world.records.put(respond_with(token="x"), "v2"))
        await world.until(lambda: len(world.service.asked("add_txt")) == 2)
        await world.records.release("order_1:t")
        put = asyncio.create_task(world.records.put(two, "v1"))
        await journalled(world, "order_2:t")
        gate.set()
        await asyncio.gather(put, other)
        await world.idle()
        assert world.service.asked("remove_txt") == []
        assert world.service.values() == {NAME: {"v1", "v2"}}

    async def test_a_value_given_up_while_a_job_finds_it_in_use_is_not_forgotten(
        self, world: Any, respond_with: Any
    ) -> None:
        """The job that leaves and the order that ends pass each other: somebody must see it."""
        one, two = respond_with(order_id="order_1"), respond_with(order_id="order_2")
        await world.records.put(one, "v1")
        await world.records.put(two, "v1")
        record_id = txt_record_id((await world.providers.find("main")).id, NAME, "v1")

        async def end_the_other(key: str) -> None:
            if key == TXT_RECORDS.key(record_id):
                world.store.after_get = None
                await world.records.release("order_2:t")

        await world.records.release("order_1:t")
        world.store.after_get = end_the_other
        world.records.remove_later([record_id])  # as a job does that was begun before two came
        assert await taken_away(world)

    async def test_twenty_orders_for_wildcard_and_apex_never_lose_each_other_s_values(
        self, world: Any, respond_with: Any
    ) -> None:
        """The bug class that every client has had: a service that replaces whole sets, and many writers."""

        async def whole(number: int) -> None:
            responses = [respond_with(order_id=f"o{number}", token=f"{kind}{number}") for kind in "aw"]
            await asyncio.gather(*(world.records.put(each, f"v {each.token}") for each in responses))
            assert {f"v {each.token}" for each in responses} <= world.service.values()[NAME]
            for each in responses:
                await world.records.remove(each, f"v {each.token}")

        await asyncio.gather(*(whole(number) for number in range(20)))
        assert await taken_away(world)


class TestTakingAway:
    async def test_the_value_is_gone_when_it_was_given_up(self, world: Any, respond_with: Any) -> None:
        """The next order for the name begins then, and the name holds only so many values."""
        await world.records.put(respond_with(), "v1")
        await world.records.remove(respond_with(), "v1")
        assert world.service.values() == {}

    async def test_a_removal_that_fails_is_not_waited_for(self, world: Any, respond_with: Any) -> None:
        """The order has its certificate; the job goes on alone."""
        gate = asyncio.Event()
        await world.records.put(respond_with(), "v1")
        world.service.script["remove_txt"].extend([TransientError("503"), gate.wait])
        async with asyncio.timeout(3):
            await world.records.remove(respond_with(), "v1")
        assert world.service.values() == {NAME: {"v1"}}
        gate.set()
        assert await taken_away(world)

    async def test_a_removal_that_hangs_is_not_waited_for_long(
        self, world: Any, respond_with: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor does it keep the next order from the name for ever."""
        monkeypatch.setattr(txt_records, "GONE_SECONDS", 0.01)
        gate = asyncio.Event()
        await world.records.put(respond_with(), "v1")
        world.service.script["remove_txt"].append(gate.wait)
        async with asyncio.timeout(3):
            await world.records.remove(respond_with(), "v1")
        gate.set()
        assert await taken_away(world)

    async def test_the_handle_comes_back_with_its_value(self, world: Any, respond_with: Any) -> None:
        """Record ids that a service gave are asked for when it is taken away, in another process too."""
        await world.records.put(respond_with(), "v1")
        (record,) = await world.journal()
        await world.records.remove(respond_with(), "v1")
        await world.idle()
        assert world.service.batches[-1] == ("remove", ["v1"], record.handle)

    async def test_a_lost_answer_leaves_no_value_behind(self, world: Any, respond_with: Any, acts: Any) -> None:
        """Nobody knows whether it was written: it is taken away without a handle."""
        world.service.script["add_txt"].append(acts(LostAnswer("reset")))
        with pytest.raises(DnsProviderError):
            await world.records.put(respond_with(), "v1")
        assert world.service.values() == {NAME: {"v1"}}
        await world.records.remove(respond_with(), "v1")
        assert await taken_away(world)
        assert world.service.batches[-1] == ("remove", ["v1"], None)

    async def test_a_provider_that_is_down_is_asked_again_until_it_is_up(
        self, world: Any, respond_with: Any, clock: Any
    ) -> None:
        """A value left behind proves the name to whoever holds the account."""
        await world.records.put(respond_with(), "v1")
        world.service.script["remove_txt"].extend([TransientError("503")] * 3)
        before = clock.monotonic()
        await world.records.remove(respond_with(), "v1")
        assert await taken_away(world)
        assert clock.monotonic() - before == sum(REMOVAL_PAUSES_SECONDS[:3])
        assert len(world.said("dns.not_removed")) == 3

    async def test_at_the_end_it_is_left_to_a_person_and_to_the_next_process(
        self, world: Any, respond_with: Any
    ) -> None:
        """No job runs for ever; the journal still knows."""
        await world.records.put(respond_with(), "v1")
        world.service.always["remove_txt"] = ProviderAuthError("revoked")
        await world.records.remove(respond_with(), "v1")
        await world.idle()
        assert len(world.said("dns.not_removed")) == REMOVAL_TRIES
        (said,) = world.said("dns.abandoned")
        assert said["log_level"] == "error"
        assert len(await world.journal()) == 1
        world.service.always.clear()
        await world.records.sweep()
        assert await taken_away(world)

    async def test_a_missing_secret_delays_it_only(self, world: Any, respond_with: Any) -> None:
        """Rotated away too early; it is put back and the removal goes on."""
        await world.records.put(respond_with(), "v1")
        await world.secret_store.delete(m.SecretByPath(path="dns/token"), CONTEXT)

        async def put_back() -> None:
            if len(world.said("dns.not_removed")) == 2:
                await world.put_secret("dns/token", world.service.token)

        world.service.always["remove_txt"] = put_back
        await world.records.remove(respond_with(), "v1")
        assert await taken_away(world)

    async def test_a_provider_that_is_gone_ends_it_with_a_word(self, world: Any, respond_with: Any) -> None:
        """From the file it can be taken out at any time; nobody can ask it any more."""
        await world.records.put(respond_with(), "v1")
        (found,) = await world.journal()
        orphan = msgspec.structs.replace(found, provider_id="dnsp_gone", users=())
        await world.sqlite.commit([TXT_RECORDS.put(orphan)])
        await world.records.sweep()
        await world.idle()
        (said,) = world.said("dns.provider_gone")
        assert said["name"] == NAME
        assert "dnsp_gone" not in {each.provider_id for each in await world.journal()}

    async def test_values_of_one_write_go_with_one_request(self, world: Any, respond_with: Any) -> None:
        """As they came."""
        await written_together(world, respond_with, 10)
        gate = asyncio.Event()
        world.service.script["remove_txt"].append(gate.wait)
        for number in range(10):
            await world.records.release(f"o{number}:t")
        await world.until(lambda: world.service.asked("remove_txt"))
        gate.set()
        assert await taken_away(world)
        assert len(world.service.asked("remove_txt")) <= 5


class TestDying:
    """What a process leaves behind when it is killed, and what the next one's sweep makes of it."""

    async def swept(self, world: Any) -> bool:
        await world.die()
        assert world.records.reports("order_1") == ()
        world.service.script.clear()
        await world.records.sweep()
        return await taken_away(world)

    async def test_between_journal_and_write(self, world: Any, respond_with: Any) -> None:
        """Nothing is in DNS; asking to remove it is no error."""
        world.service.script["add_txt"].append(asyncio.Event().wait)
        put = asyncio.create_task(world.records.put(respond_with(), "v1"))
        await world.until(lambda: world.service.asked("add_txt"))
        put.cancel()
        assert await users_of(world) == {"v1": ("order_1:t",)}
        assert world.service.values() == {}
        assert await self.swept(world)

    async def test_between_write_and_outcome(self, world: Any, respond_with: Any) -> None:
        """It is in DNS, and nobody was told."""

        async def act_and_hang() -> None:
            world.service.sets[NAME] = ["v1"]
            await asyncio.Event().wait()

        world.service.script["add_txt"].append(act_and_hang)
        put = asyncio.create_task(world.records.put(respond_with(), "v1"))
        await world.until(lambda: world.service.values())
        put.cancel()
        assert await self.swept(world)
        assert world.service.batches[-1] == ("remove", ["v1"], None)

    async def test_while_it_is_in_use(self, world: Any, respond_with: Any) -> None:
        """The order is not there any more: its values go."""
        await world.records.put(respond_with(), "v1")
        assert await self.swept(world)
        assert world.said("dns.left_behind")

    async def test_between_giving_up_and_removal(self, world: Any, respond_with: Any) -> None:
        """Nobody needs it, and it is still there."""
        await world.records.put(respond_with(), "v1")
        world.service.script["remove_txt"].append(asyncio.Event().wait)
        await world.records.release("order_1:t")
        await world.until(lambda: world.service.asked("remove_txt"))
        assert await self.swept(world)

    async def test_between_removal_and_its_note(self, world: Any, respond_with: Any) -> None:
        """It is gone already; removing it again is no error."""
        await world.records.put(respond_with(), "v1")
        removed = asyncio.Event()

        async def die_here(changes: Sequence[Any]) -> None:
            if world.service.asked("remove_txt"):
                removed.set()
                await asyncio.Event().wait()

        await world.records.release("order_1:t", by_job=False)
        world.store.before_commit = die_here
        world.records.remove_later([txt_record_id((await world.journal())[0].provider_id, NAME, "v1")])
        await removed.wait()
        world.store.before_commit = None
        assert world.service.values() == {}
        assert await self.swept(world)

    async def test_a_sweep_takes_exactly_ours(self, world: Any, respond_with: Any) -> None:
        """Foreign values at the same name, and what a live order needs, stay."""
        world.service.sets[NAME] = [FOREIGN]
        world.service.script["add_txt"].append(TransientError("503"))
        account_id = await world.account()
        world.ca.script["respond"].append(asyncio.Event().wait)
        order_id = await world.dns_order("*.example.test", account_id=account_id)
        await world.until(lambda: world.ca.asked("respond"))
        (of_order,) = world.service.values()[NAME] - {FOREIGN}
        await world.records.put(respond_with(order_id="order_gone"), of_order)
        await world.records.put(respond_with(order_id="order_gone", token="t2"), "v2")
        await world.die()
        await world.records.sweep()
        await world.idle()
        assert world.service.values() == {NAME: {FOREIGN, of_order}}
        ((value, (user,)),) = (await users_of(world)).items()
        assert (value, user.partition(":")[0]) == (of_order, order_id)

    async def test_a_sweep_leaves_what_another_sweep_is_removing(self, world: Any, respond_with: Any) -> None:
        """Two at once do not disturb each other."""
        for number in range(5):
            await world.records.put(respond_with(order_id=f"o{number}", token=f"t{number}"), f"v{number}")
        await world.die()
        await asyncio.gather(world.records.sweep(), world.records.sweep())
        assert await taken_away(world)
        assert world.said("job.failed") == []


class TestPlace:
    async def test_the_value_goes_where_the_cname_leads(self, world: Any, name_servers: Any, respond_with: Any) -> None:
        """Provider and zone are those of the target: a DNS service without an API stays out of it."""
        name_servers.cnames["_acme-challenge.www.other.test"] = "hop.example.test"
        name_servers.cnames["hop.example.test"] = "validation.example.test"
        await world.records.put(respond_with("www.other.test"), "v1")
        assert world.service.values() == {"validation.example.test": {"v1"}}
        (report,) = world.records.reports("order_1")
        assert report.chain == ("hop.example.test", "validation.example.test")
        assert (report.record_name, report.identifier) == ("validation.example.test", "www.other.test")

    async def test_a_cname_that_has_changed_meanwhile_leaves_nothing_behind(
        self, world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """It goes from where it was written, wherever the name leads now."""
        name_servers.cnames[NAME] = "old.example.test"
        await world.records.put(respond_with(), "v1")
        name_servers.cnames[NAME] = "new.example.test"
        world.clock.advance(PLACE_SECONDS)
        await world.records.put(respond_with(), "v1")
        assert set(world.service.values()) == {"old.example.test", "new.example.test"}
        await world.records.remove(respond_with(), "v1")
        assert await taken_away(world)

    async def test_an_alias_is_written_instead_of_the_name(
        self, dns_world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """Where the daemon cannot see the public CNAME; the alias' own CNAMEs are nobody's business."""
        await dns_world.provider(challenge_alias="alias.example.test")
        name_servers.cnames["alias.example.test"] = "elsewhere.example.test"
        await dns_world.records.put(respond_with("www.hidden.test", dns_provider="main"), "v1")
        assert dns_world.service.values() == {"alias.example.test": {"v1"}}

    async def test_follow_cname_false_writes_to_the_name_itself(
        self, dns_world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """For views in which the CNAME is not what the world sees."""
        await dns_world.provider(follow_cname=False)
        name_servers.cnames[NAME] = "elsewhere.example.test"
        await dns_world.records.put(respond_with(dns_provider="main"), "v1")
        assert dns_world.service.values() == {NAME: {"v1"}}

    async def test_the_named_provider_is_used_though_another_serves_the_zone(
        self, world: Any, respond_with: Any
    ) -> None:
        """An explicit word beats every guess, by name or id."""
        other = await world.provider("other", zones=["example.test"], propagation="skip")
        for key in ("other", other.id):
            await world.records.put(respond_with(order_id=key, dns_provider=key), "v1")
        assert {record.provider_id for record in await world.journal()} == {other.id}

    async def test_a_named_provider_that_is_gone_is_final(self, world: Any, respond_with: Any) -> None:
        """Deleted between request and attempt."""
        with pytest.raises(DnsProviderError, match="no DNS provider 'man'; did you mean 'main'") as failed:
            await world.records.put(respond_with(dns_provider="man"), "v1")
        assert failed.value.is_final

    @pytest.mark.parametrize("reason", ["unreachable", "no_zone", "lame_delegation"])
    async def test_who_does_not_ask_the_servers_does_not_need_the_way_to_them(
        self, dns_world: Any, name_servers: Any, respond_with: Any, reason: Any
    ) -> None:
        """Behind a firewall that lets no DNS out the provider's API may still be reached."""
        name_servers.refuses[NAME] = DnsError("nobody answers", reason)
        await dns_world.provider(propagation="delay", propagation_delay=5)
        await dns_world.records.put(respond_with(dns_provider="main"), "v1")
        assert dns_world.service.values() == {NAME: {"v1"}}
        (said,) = dns_world.said("dns.no_route")
        assert said["detail"] == "nobody answers"

    @pytest.mark.parametrize(
        ("reason", "policy"),
        [("unreachable", "all"), ("no_zone", "quorum"), ("dnssec_bogus", "skip"), ("cname_loop", "delay")],
    )
    async def test_everybody_else_is_told_what_is_wrong(
        self, dns_world: Any, name_servers: Any, respond_with: Any, reason: Any, policy: str
    ) -> None:
        """A loop or a bogus zone fails at the CA whatever we look at."""
        name_servers.refuses[NAME] = DnsError("nobody answers", reason)
        await dns_world.provider(propagation=policy)
        with pytest.raises(DnsError) as failed:
            await dns_world.records.put(respond_with(dns_provider="main"), "v1")
        assert (failed.value.reason, failed.value.identifier) == (reason, "example.test")
        assert dns_world.service.values() == {}
        assert await dns_world.journal() == []

    async def test_a_zone_that_the_world_asks_elsewhere_is_a_warning(
        self, world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """It may work, so it goes on; when it does not, this is the reason."""
        name_servers.zones["sub.example.test"] = ("192.0.2.9",)
        await world.records.put(respond_with("sub.example.test"), "v1")
        (report,) = world.records.reports("order_1")
        assert report.warning is not None
        assert "main writes to its zone example.test, but the world asks the servers of sub.example.test" in (
            report.warning
        )
        name_servers.shows["192.0.2.9"] = "absent"
        with pytest.raises(DnsPropagationTimeout, match=r"says absent\. main writes to its zone example\.test"):
            await world.records.put(respond_with("sub.example.test", order_id="order_2"), "v2")


class TestSeeing:
    async def test_a_bogus_zone_is_named_when_time_runs_out(
        self, world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """The servers may be right and the signatures wrong: the CA's resolver sees nothing."""
        name_servers.bogus_zones["example.test"] = "the signature of its SOA has expired"
        name_servers.shows["192.0.2.1"] = "failed"
        with pytest.raises(DnsPropagationTimeout, match=r"\. DNSSEC: the signature of its SOA has expired"):
            await world.records.put(respond_with(), "v1")

    async def test_on_failure_continue_goes_on_with_a_warning(
        self, dns_world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """Some set-ups never converge, and their owner knows; the report still tells."""
        await dns_world.provider(propagation_failure="continue", propagation_timeout=10)
        name_servers.shows["192.0.2.2"] = "absent"
        await dns_world.records.put(respond_with(), "v1")
        (report,) = dns_world.records.reports("order_1")
        assert report.status == "failed"
        assert [each.answer for each in report.verdicts] == ["complete", "absent"]
        assert dns_world.said("dns.not_visible")

    async def test_the_report_follows_the_value(self, world: Any, name_servers: Any, respond_with: Any) -> None:
        """Whoever waits for an order sees what it waits for, server by server."""
        seen: list[Any] = []

        async def look() -> None:
            seen.extend(world.records.reports("order_1"))

        world.service.script["add_txt"].append(look)
        name_servers.before_look = look
        name_servers.rounds.append({"192.0.2.2": "absent"})
        await world.records.put(respond_with(), "v1")
        (report,) = world.records.reports("order_1")
        assert [each.status for each in (*seen, report)] == ["writing", *["waiting"] * 3, "visible"]
        assert [[v.answer for v in each.verdicts] for each in seen] == [
            [],
            [],
            ["complete", "absent"],
            ["complete", "complete"],
        ]
        assert (report.dns_provider, report.zone, report.policy) == ("main", "example.test", "all")
        assert report.seconds > 0
        await world.records.remove(respond_with(), "v1")
        assert world.records.reports("order_1") == ()

    async def test_a_report_that_says_failed_is_not_overtaken_by_the_name_s_other_value(
        self, world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """The other one is still waiting when the order ends: what stays in the order must tell why."""
        name_servers.shows["192.0.2.2"] = "absent"

        async def let_the_other_look() -> None:
            seen = len(name_servers.looks)
            await world.until(lambda: len(name_servers.looks) > seen + 2)

        name_servers.before_bogus = let_the_other_look
        override = PropagationOverride(timeout=10_000)
        place = await world.records.place(NAME, None, override)
        first = asyncio.create_task(world.records.put(respond_with(token="a"), "va"))
        await journalled(world, "order_1:a")
        second = asyncio.create_task(world.records.write_and_see(place, "vw", "order_1:w", "order_1", "example.test"))
        with pytest.raises(DnsPropagationTimeout):
            await first
        second.cancel()
        await asyncio.wait({second})
        (report,) = world.records.reports("order_1")
        assert report.status == "failed"

    async def test_the_provider_s_own_signal_comes_first_and_is_not_the_last_word(
        self, dns_world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """Asking a server too early may be remembered; but only the servers tell what the CA will see."""
        await dns_world.provider(kind="signalling")
        looks: list[int] = []

        async def count() -> None:
            looks.append(len(name_servers.looks))

        dns_world.service.script["wait_live"].extend([count, TransientError("503")])
        await dns_world.records.put(respond_with(), "v1")
        assert looks == [0]
        assert len(name_servers.looks) == 2
        await dns_world.records.put(respond_with(order_id="order_2"), "v2")
        assert dns_world.said("dns_provider.not_live")

    async def test_the_order_s_wishes_come_before_the_provider_s_settings(self, world: Any, name_servers: Any) -> None:
        """As the request said."""
        name_servers.shows["192.0.2.2"] = "absent"
        order_id = await world.dns_order(
            propagation=m.PropagationRequest(visibility="resolvers", resolvers=["8.8.8.8"])
        )
        order = await world.ended(order_id)
        assert order.status == "valid"
        assert {addresses for _, addresses, _ in name_servers.looks} == {("8.8.8.8",)}
        assert order.propagation == PropagationOverride(visibility="resolvers", resolvers=("8.8.8.8",))


class TestClaims:
    async def test_a_share_of_the_effective_name_at_its_provider_is_claimed(
        self, dns_world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """Unrelated names may lead to one record, and that holds so many values."""
        limits = {"memory": VALUES_AT_ONCE, "few_values": 2}
        for kind, limit in limits.items():
            made = await dns_world.provider(kind, kind)
            for name in ("a.example.test", "b.example.test"):
                name_servers.cnames[f"_acme-challenge.{name}"] = "shared.example.test"
                response = respond_with(name, token=kind, dns_provider=kind)
                assert await dns_world.records.claims(response) == {f"{made.id} shared.example.test": limit}

    async def test_what_was_found_out_for_a_claim_is_good_for_the_put(
        self, world: Any, name_servers: Any, respond_with: Any
    ) -> None:
        """One look at DNS, not two; but no longer than a minute, and not for the next try."""
        await world.records.claims(respond_with())
        await world.records.put(respond_with(), "v1")
        assert name_servers.routed == [NAME]
        await world.records.put(respond_with(), "v1")
        assert name_servers.routed == [NAME] * 2
        world.clock.advance(PLACE_SECONDS)
        await world.records.put(respond_with(), "v1")
        assert name_servers.routed == [NAME] * 3

    async def test_what_is_wrong_is_left_to_the_put(self, dns_world: Any, name_servers: Any, respond_with: Any) -> None:
        """One place reports it, with the identifier."""
        await dns_world.provider(kind="few_values")
        name_servers.refuses[NAME] = DnsError("a loop", "cname_loop")
        assert await dns_world.records.claims(respond_with()) == {}
