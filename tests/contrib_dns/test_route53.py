"""Route 53 against a server at the socket that checks what the service checks, and remembers what it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest
from scaivaultd_contrib_dns import route53
from scaivaultd_contrib_dns.route53_xml import RecordSet, change_batch, parse, zone_page

from scaivaultd.plugin import (
    Checkable,
    DnsProvider,
    PermanentError,
    ProviderAuthError,
    TransientError,
    Zone,
    ZoneNotFound,
)
from scaivaultd.plugin.dns import DnsProviderKind, SignalsLive
from scaivaultd.plugin.testing import (
    ONE,
    TWO,
    DnsProviderContract,
    FaultKind,
    FixedSecrets,
    JumpingClock,
    RecordingLog,
    Rig,
    everything_about,
    open_provider,
)
from tests.fakes.name_server import name_server
from tests.fakes.route53 import FakeRoute53, FakeSet, throttling

NAME = "_acme-challenge.www.example.org"
(KIND,) = route53.scaivaultd_dns_providers()


class Route53Rig:
    """A hosted zone below its parent, which is in the same account."""

    kind: DnsProviderKind = KIND
    zone = "example.org"
    secrets: Mapping[str, str] = {"aws/id": "AKIATEST", "aws/secret": "the-secret-access-key"}
    wrong_secrets: Mapping[str, str] | None = {"aws/id": "AKIATEST", "aws/secret": "another-secret-access-key"}

    def __init__(self, server: FakeRoute53) -> None:
        self.server = server
        self.parent = server.add_zone("Z1", "org")
        self.hosted = server.add_zone("Z2", "example.org")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "access_key_id_path": "aws/id",
            "secret_access_key_path": "aws/secret",
            "endpoint_url": self.server.url,
        }

    async def values(self, name: str) -> Sequence[str]:
        return self.server.txt(self.hosted, name)

    async def put_foreign(self, name: str, value: str) -> None:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        text = " ".join(f'"{escaped[place : place + 250]}"' for place in range(0, len(escaped), 250))
        old = self.hosted.sets.get((f"{name}.", "TXT", ""))
        self.hosted.put(FakeSet(f"{name}.", "TXT", 300, (*(old.values if old else ()), text)))

    async def fail(self, fault: FaultKind, times: int) -> None:
        self._fail(fault, times, "")

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        self._fail(fault, times, "^POST ")

    def complaints(self) -> Sequence[str]:
        return self.server.violations

    def _fail(self, fault: FaultKind, times: int, where: str) -> None:
        if fault == "rate_limit":
            self.server.fail("status", times=times, where=where, status=400, body=throttling(), content_type="text/xml")
        elif fault == "server_error":
            self.server.fail("status", times=times, where=where)
        else:
            self.server.fail(fault, times=times, where=where)


@pytest.fixture
async def rig() -> AsyncIterator[Route53Rig]:
    async with FakeRoute53() as server:
        rig = Route53Rig(server)
        yield rig
        assert not server.violations


def opened(
    rig: Rig, log: RecordingLog | None = None, clock: JumpingClock | None = None, **settings: Any
) -> AbstractAsyncContextManager[DnsProvider]:
    return open_provider(rig, log=log, clock=clock, **settings)


class TestRoute53Contract(DnsProviderContract):
    """What every provider has to do."""

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        async with FakeRoute53() as server:
            yield Route53Rig(server)


# Zones


async def test_the_listing_is_a_starting_point_and_private_zones_are_not_ours(rig: Route53Rig) -> None:
    """Taking the first zone listed writes into a stranger's; a private zone is seen by no CA."""
    rig.server.add_zone("Z3", "www.example.org", private=True)
    rig.server.add_zone("Z4", "zzz.example.org")
    async with opened(rig) as provider:
        assert await provider.find_zone(NAME) == Zone(name="example.org", id="Z2")
        assert await provider.find_zone("_acme-challenge.zzz.example.org") == Zone(name="zzz.example.org", id="Z4")


async def test_a_zone_behind_many_private_ones_of_its_name_is_found(rig: Route53Rig) -> None:
    """Every page has to be read, or the zone on the second one does not exist."""
    for number in range(5):
        rig.server.add_zone(f"Y{number}", "paged.example", private=True)
    rig.server.add_zone("Y9", "paged.example")
    rig.server.page_size = 2
    async with opened(rig) as provider:
        assert (await provider.find_zone("a.paged.example")).id == "Y9"


async def test_two_public_zones_of_one_name_ask_for_the_id(rig: Route53Rig) -> None:
    """Only one of them is delegated to; a guess would be wrong half of the time. Here DNS cannot be asked."""
    rig.server.add_zone("Z5", "example.org")
    async with opened(rig, propagation_resolvers=["127.0.0.1:1"]) as provider:
        with pytest.raises(PermanentError, match=r"Z2, Z5.*hosted_zone_id"):
            await provider.find_zone(NAME)
    async with opened(rig, hosted_zone_id="/hostedzone/Z5") as provider:
        assert await provider.find_zone(NAME) == Zone(name="example.org", id="Z5")


async def test_of_two_public_zones_the_delegated_one_is_used(rig: Route53Rig) -> None:
    """A half-finished move leaves two zones of one name; values in the wrong one are never seen."""
    rig.server.add_zone("Z5", "example.org").name_servers = ("ns-8.test.", "ns-9.test.")
    async with name_server("ns-9.test.") as address, opened(rig, propagation_resolvers=[address]) as provider:
        assert (await provider.find_zone(NAME)).id == "Z5"
    rig.server.denied_operations = {"GetHostedZone"}
    async with opened(rig) as provider:
        with pytest.raises(PermanentError, match=r"Z2, Z5.*hosted_zone_id.*route53:GetHostedZone"):
            await provider.find_zone(NAME)


async def test_no_zone_is_told_as_such(rig: Route53Rig) -> None:
    """The host then asks another provider."""
    async with opened(rig) as provider:
        with pytest.raises(ZoneNotFound, match=r"example\.net"):
            await provider.find_zone("_acme-challenge.example.net")


@pytest.mark.parametrize("with_soa", [True, False], ids=["by-listing", "by-name"])
@pytest.mark.parametrize("page_size", [1, 100])
async def test_a_configured_zone_needs_no_right_to_list_zones(rig: Route53Rig, with_soa: bool, page_size: int) -> None:
    """The least rights are those on one zone; its SOA record may be on a later page."""
    rig.server.page_size = page_size
    rig.hosted.put(FakeSet("example.org.", "A", 60, ("192.0.2.1",)))
    rig.server.denied_operations = {"ListHostedZonesByName"} | ({"GetHostedZone"} if with_soa else set())
    if not with_soa:
        rig.hosted.sets.clear()
    async with opened(rig, hosted_zone_id="Z2") as provider:
        zone = await provider.find_zone(NAME)
        assert (zone.name, zone.id) == ("example.org", "Z2")
        await provider.add_txt(zone, NAME, [ONE], 60)
        with pytest.raises(ZoneNotFound, match="hosted_zone_id"):
            await provider.find_zone("_acme-challenge.example.net")


async def test_a_configured_zone_that_cannot_be_used_is_told(rig: Route53Rig) -> None:
    """It is another account's, or private, where no CA sees it."""
    rig.server.add_zone("Z3", "inner.example", private=True).sets.clear()
    for zone_id, text in (("Z9", "right AWS account"), ("Z3", "private")):
        async with opened(rig, hosted_zone_id=zone_id) as provider:
            assert isinstance(provider, Checkable)
            with pytest.raises(ZoneNotFound, match=text):
                await provider.find_zone(NAME)
            with pytest.raises(ZoneNotFound, match=text):
                await provider.check()


async def test_zones_are_remembered_for_some_minutes(rig: Route53Rig) -> None:
    """Hundreds of names would use up the rate limit of the account; a new zone must be seen soon all the same."""
    clock = JumpingClock()
    async with opened(rig, clock=clock) as provider:
        await provider.find_zone(NAME)
        asked = len(rig.server.seen)
        await provider.find_zone(NAME)
        assert len(rig.server.seen) == asked
        rig.server.add_zone("Z6", "www.example.org")
        await clock.sleep(61)
        assert (await provider.find_zone(NAME)).id == "Z6"


async def test_a_zone_that_went_away_is_looked_up_again(rig: Route53Rig) -> None:
    """A zone made anew has another id; the remembered one would fail until the daemon is restarted."""
    async with opened(rig) as provider:
        zone = await provider.find_zone(NAME)
        rig.server.zones.remove(rig.hosted)
        rig.server.add_zone("Z7", "example.org")
        with pytest.raises(ZoneNotFound):
            await provider.add_txt(zone, NAME, [ONE], 60)
        assert (await provider.find_zone(NAME)).id == "Z7"


# Record sets


async def test_a_set_is_replaced_in_one_transaction_and_keeps_its_ttl(rig: Route53Rig) -> None:
    """DELETE of the set as read is the only precondition there is; a foreign set's TTL is not ours."""
    foreign = r'"v=spf1 \"x\" \342" "second string"'
    rig.hosted.put(FakeSet(f"{NAME}.", "TXT", 1234, (foreign,)))
    async with opened(rig) as provider:
        await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60)
    before = FakeSet(f"{NAME}.", "TXT", 1234, (foreign,))
    after = FakeSet(f"{NAME}.", "TXT", 1234, (foreign, f'"{ONE}"'))
    assert rig.server.batches == [[("DELETE", before), ("CREATE", after)]]


async def test_other_types_and_names_in_the_listing_are_left_alone(rig: Route53Rig) -> None:
    """The listing begins at the name and goes on to others."""
    rig.hosted.put(FakeSet(f"{NAME}.", "A", 60, ("192.0.2.1",)))
    rig.hosted.put(FakeSet(f"{NAME}.", "MX", 60, ("10 mail.test.",)))
    rig.hosted.put(FakeSet(f"z{NAME}.", "TXT", 60, (f'"{ONE}"',)))
    rig.hosted.put(FakeSet(f"a.{NAME}.", "TXT", 60, ('"other"',)))
    zone = Zone(name="example.org", id="Z2")
    async with opened(rig) as provider:
        await provider.add_txt(zone, NAME, [ONE], 60)
        assert rig.server.txt(rig.hosted, NAME) == [ONE]
        await provider.remove_txt(zone, NAME, [ONE], None)
    assert [action for batch in rig.server.batches for action, _ in batch] == ["CREATE", "DELETE"]
    assert rig.server.txt(rig.hosted, f"a.{NAME}") == ["other"]


@pytest.mark.parametrize("list_form", [False, True])
async def test_a_lost_race_is_read_again(rig: Route53Rig, list_form: bool) -> None:
    """Both forms in which the service says that the set has changed."""
    rig.server.list_form = list_form
    zone = Zone(name="example.org", id="Z2")
    read = asyncio.Event()
    answer = rig.server.answer

    async def overtaken(seen: Any) -> Any:
        if seen.method == "POST" and not read.is_set():
            read.set()
            await rig.put_foreign(NAME, "somebody was faster")
        return await answer(seen)

    rig.server.answer = overtaken  # type: ignore[method-assign]  # the fake's own hook for what happens in between
    async with opened(rig) as provider:
        await provider.add_txt(zone, NAME, [ONE], 60)
    assert sorted(rig.server.txt(rig.hosted, NAME)) == sorted(["somebody was faster", ONE])
    assert len(rig.server.batches) == 1


async def test_a_race_is_told_from_a_cname_by_more_than_the_name(rig: Route53Rig) -> None:
    """The message holds the name, and a label of it may be `cname`."""
    name = "_acme-challenge.cname.example.org"
    answer = rig.server.answer

    async def overtaken(seen: Any) -> Any:
        if seen.method == "POST" and not rig.server.txt(rig.hosted, name):
            rig.hosted.put(FakeSet(f"{name}.", "TXT", 300, ('"somebody was faster"',)))
        return await answer(seen)

    rig.server.answer = overtaken  # type: ignore[method-assign]
    async with opened(rig) as provider:
        await provider.add_txt(Zone(name="example.org", id="Z2"), name, [ONE], 60)
    assert sorted(rig.server.txt(rig.hosted, name)) == sorted(["somebody was faster", ONE])


async def test_a_cname_at_the_name_is_no_race(rig: Route53Rig) -> None:
    """It says "already exists" as well, but stays so however often one looks."""
    rig.hosted.put(FakeSet(f"{NAME}.", "CNAME", 60, ("elsewhere.test.",)))
    async with opened(rig) as provider:
        with pytest.raises(PermanentError, match="CNAME"):
            await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60)
    assert len(rig.server.asked("^POST")) == 1


async def test_beside_multivalue_sets_stands_one_of_our_own(rig: Route53Rig) -> None:
    """cert-manager writes such sets: a simple one is refused beside them, and theirs must stay."""
    theirs = FakeSet(f"{NAME}.", "TXT", 10, ('"theirs"',), identifier='"theirs"', multivalue=True)
    rig.hosted.put(theirs)
    rig.server.page_size = 1
    zone = Zone(name="example.org", id="Z2")
    async with opened(rig) as provider:
        for _ in range(2):
            await provider.add_txt(zone, NAME, [ONE, TWO], 60)
        assert sorted(rig.server.txt(rig.hosted, NAME)) == sorted(["theirs", ONE, TWO])
        await provider.remove_txt(zone, NAME, [ONE, TWO], None)
    assert rig.server.txt(rig.hosted, NAME) == ["theirs"]
    assert theirs in rig.hosted.sets.values()


async def test_beside_weighted_sets_nothing_can_stand(rig: Route53Rig) -> None:
    """It is said at once, not after ten tries."""
    rig.hosted.put(FakeSet(f"{NAME}.", "TXT", 10, ('"w"',), identifier="w", weight=1))
    async with opened(rig) as provider:
        with pytest.raises(PermanentError, match="routing policy"):
            await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60)


async def test_a_policy_that_permits_upsert_only_works_with_one_warning(rig: Route53Rig) -> None:
    """Many policies in use say so; the warning tells what is lost."""
    rig.server.denied_actions = {"CREATE", "DELETE"}
    zone = Zone(name="example.org", id="Z2")
    log = RecordingLog()
    await rig.put_foreign(NAME, "foreign")
    async with opened(rig, log=log) as provider:
        await provider.add_txt(zone, NAME, [ONE], 60)
        await provider.add_txt(zone, NAME, [TWO], 60)
        await provider.remove_txt(zone, NAME, [ONE], None)
        assert sorted(rig.server.txt(rig.hosted, NAME)) == sorted(["foreign", TWO])
    assert len([line for line in log.lines if line.startswith("warning")]) == 1
    # Refused, refused with keys read anew, permitted; from then on nothing is tried that is refused.
    assert len(rig.server.asked("^POST")) == 5


async def test_what_one_zones_policy_lacks_is_not_left_out_elsewhere(rig: Route53Rig) -> None:
    """Only DELETE and CREATE see a lost race; a zone that permits them must not lose that to another zone."""
    rig.server.denied_actions = {"CREATE", "DELETE"}
    async with opened(rig) as provider:
        await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60)
        rig.server.denied_actions = set()
        await provider.add_txt(Zone(name="org", id="Z1"), "_acme-challenge.org", [ONE], 60)
    assert [[action for action, _ in batch] for batch in rig.server.batches] == [["UPSERT"], ["CREATE"]]


async def test_a_policy_that_permits_nothing_is_told(rig: Route53Rig) -> None:
    """The text names the right that is missing."""
    rig.server.denied_actions = {"CREATE", "DELETE", "UPSERT"}
    async with opened(rig) as provider:
        with pytest.raises(ProviderAuthError, match=r"AccessDenied.*ChangeResourceRecordSets"):
            await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60)


async def test_names_of_one_zone_share_batches_and_one_bad_name_spoils_none(rig: Route53Rig) -> None:
    """The service refuses a second request for a zone while one runs; a batch is all or nothing."""
    zone = Zone(name="example.org", id="Z2")
    names = [f"_acme-challenge.{number}.example.org" for number in range(20)]
    rig.hosted.put(FakeSet(f"{names[7]}.", "CNAME", 60, ("elsewhere.test.",)))
    async with opened(rig) as provider:
        results = await asyncio.gather(
            *(provider.add_txt(zone, name, [ONE], 60) for name in names), return_exceptions=True
        )
    assert [place for place, result in enumerate(results) if isinstance(result, Exception)] == [7]
    for place, name in enumerate(names):
        assert rig.server.txt(rig.hosted, name) == ([] if place == 7 else [ONE])
    assert any(len(batch) > 1 for batch in rig.server.batches)


async def test_calls_for_one_name_wait_for_each_other(rig: Route53Rig) -> None:
    """Of many that race each other some would lose every round."""
    zone = Zone(name="example.org", id="Z2")
    values = [f"value-{number}" for number in range(20)]
    async with opened(rig) as provider:
        await asyncio.gather(*(provider.add_txt(zone, NAME, [value], 60) for value in values))
        assert sorted(rig.server.txt(rig.hosted, NAME)) == sorted(values)
        await asyncio.gather(*(provider.remove_txt(zone, NAME, [value], None) for value in values))
    assert len(rig.server.asked("^POST")) == 40


async def test_a_broken_off_sender_does_not_take_the_others_down(rig: Route53Rig) -> None:
    """Whoever sends for all may be cancelled; the others look what became of theirs."""
    zone = Zone(name="example.org", id="Z2")
    names = [f"_acme-challenge.{number}.example.org" for number in range(6)]
    written = asyncio.Event()

    def on_txt(name: str, values: tuple[str, ...]) -> None:
        # The first batch holds one name; the second, whose answer never comes, all that waited meanwhile.
        if len(rig.server.batches) == 1:
            rig.server.fail("hang", where="^POST")
        elif len(rig.server.batches) == 2:
            written.set()

    rig.server.on_txt = on_txt
    async with opened(rig) as provider:
        tasks = {name: asyncio.create_task(provider.add_txt(zone, name, [ONE], 60)) for name in names}
        await written.wait()
        together = [each.name.rstrip(".") for _, each in rig.server.batches[1]]
        assert len(together) > 1
        tasks[together[0]].cancel()
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert [type(result) for result in results if isinstance(result, BaseException)] == [asyncio.CancelledError]
    for name in names:
        assert rig.server.txt(rig.hosted, name) == [ONE]


# Waiting


async def test_a_change_is_waited_for_by_one_poller_for_all(rig: Route53Rig) -> None:
    """Polls count against the rate limit; names of one batch share their change."""
    clock = JumpingClock()
    async with opened(rig, clock=clock) as provider:
        assert isinstance(provider, SignalsLive)
        handle = await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60)
        await asyncio.gather(*(provider.wait_live(handle) for _ in range(5)))
    assert len(rig.server.asked("/change/")) == rig.server.pending_polls + 1
    assert [pause for pause in clock.pauses if pause > 1] == pytest.approx([1.125, 1.29375])


async def test_a_slow_change_is_looked_at_ever_more_rarely(rig: Route53Rig) -> None:
    """Many take some seconds only, and few take minutes: neither may wait, or ask, much longer than it must."""
    rig.server.pending_polls = 40
    clock = JumpingClock()
    async with opened(rig, clock=clock) as provider:
        assert isinstance(provider, SignalsLive)
        await provider.wait_live(await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60))
    pauses = [pause for pause in clock.pauses if pause > 1]
    assert len(pauses) == 40
    assert sum(pauses[:6]) < 10
    assert set(pauses[10:]) == {4.5}


async def test_waiting_can_be_left_out(rig: Route53Rig) -> None:
    """The name servers are asked afterwards all the same."""
    async with opened(rig, wait_for_insync=False) as provider:
        assert isinstance(provider, SignalsLive)
        await provider.wait_live(await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60))
    assert not rig.server.asked("/change/")


async def test_requests_keep_their_distance(rig: Route53Rig) -> None:
    """Tens of names at once are throttled otherwise."""
    clock = JumpingClock()
    async with opened(rig, clock=clock) as provider:
        for number in range(5):
            await provider.add_txt(Zone(name="example.org", id="Z2"), f"_acme-challenge.{number}.example.org", [ONE], 1)
    assert len(rig.server.seen) == 10
    assert sum(clock.pauses) > 2.0


# What may not leak, and what must be refused


async def test_the_canonical_request_in_an_error_is_not_shown(rig: Route53Rig) -> None:
    """AWS shows it, and the session token stands in it."""
    rig.server.keys["AKIATEST"] = ("right-secret-key", "the-session-token")
    secrets = FixedSecrets({**rig.secrets, "aws/token": "the-session-token"})
    async with open_provider(rig, secrets=secrets, session_token_path="aws/token") as provider:
        with pytest.raises(ProviderAuthError, match="SignatureDoesNotMatch") as caught:
            await provider.find_zone(NAME)
    assert "the-session-token" not in everything_about(caught.value)
    assert "X-Amz" not in str(caught.value)


async def test_a_signature_in_an_error_is_not_shown(rig: Route53Rig) -> None:
    """AWS quotes the header that it cannot read."""
    header = "AWS4-HMAC-SHA256 Credential=AKIATEST/x, Signature=0123456789abcdef"
    message = f"Credential must have five parts in Authorization header: '{header}'. (AWS4-HMAC-SHA256)"
    body = f"<Error><Code>IncompleteSignature</Code><Message>{message}</Message></Error>".encode()
    rig.server.fail("status", times=9, status=400, body=body, content_type="text/xml")
    async with opened(rig) as provider:
        with pytest.raises(ProviderAuthError, match="IncompleteSignature: Credential must have five parts") as caught:
            await provider.find_zone(NAME)
    assert "Signature=" not in everything_about(caught.value)


UNREADABLE = {
    "empty": b"",
    "html": b"<!DOCTYPE html><html><br></html>",
    "cut": b'<?xml version="1.0"?><ListHosted',
    "unknown-encoding": b'<?xml version="1.0" encoding="klingon"?><a/>',
    "refused-encoding": b'<?xml version="1.0" encoding="utf-7"?><a/>',
    "something-else": b"<a/>",
}


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("where", ["hostedzonesbyname$", "^GET .*rrset$", "^POST"])
async def test_an_answer_that_cannot_be_read_is_asked_for_again(
    rig: Route53Rig, where: str, body: bytes, status: int
) -> None:
    """Gateways answer in the service's place; believing them loses the value, giving up loses the order."""
    rig.server.fail("status", where=where, status=status, body=body, content_type="text/xml")
    async with opened(rig) as provider:
        await provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60)
        assert rig.server.txt(rig.hosted, NAME) == [ONE]
        rig.server.fail("status", where=where, status=status, body=body, content_type="text/xml")
        await provider.remove_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], None)
    assert rig.server.txt(rig.hosted, NAME) == []


@pytest.mark.parametrize(
    "code", ["Throttling", "TooManyRequestsException", "PriorRequestNotComplete", "RequestTimeout"]
)
@pytest.mark.parametrize("where", ["^GET", "^POST"])
async def test_codes_that_pass_come_with_status_400(rig: Route53Rig, code: str, where: str) -> None:
    """The status says that asking again will not help, and is wrong."""
    body = throttling().replace(b"Throttling", code.encode())
    rig.server.fail("status", times=4, where=where, status=400, body=body, content_type="text/xml")
    async with opened(rig) as provider:
        await provider.add_txt(Zone(name="example.org", id="Z2"), NAME, [ONE], 60)
    assert rig.server.txt(rig.hosted, NAME) == [ONE]


def test_a_document_type_is_refused() -> None:
    """Entities grow without end; nothing that AWS sends has a document type."""
    bomb = b'<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'
    for body in (bomb, bomb.decode().encode("utf-16")):
        with pytest.raises(TransientError, match="document type"):
            parse(body)


def test_what_is_no_xml_may_pass() -> None:
    """A proxy's page with status 200 is weather."""
    with pytest.raises(TransientError):
        zone_page(b"<html><br></html>")


def test_values_are_escaped_for_xml_only() -> None:
    """Foreign values are written back as they came, whatever is in them."""
    value = '"a<b>&amp; \\"x\\" \\303\\244"'
    body = change_batch(route53._each("CREATE", [RecordSet(name="a.", type="TXT", ttl=1, values=(value,))]))
    found = [each.text for each in parse(body).iter() if each.tag.endswith("Value")]
    assert found == [value]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"access_key_id_path": "a"}, "both, or neither"),
        ({"secret_access_key_path": "a"}, "both, or neither"),
        ({"session_token_path": "a"}, "session_token_path needs"),
        ({"credentials_source": "static"}, "static needs"),
        (
            {"credentials_source": "imds", "access_key_id_path": "a", "secret_access_key_path": "b"},
            "but keys are given",
        ),
        ({"external_id": "abc"}, "needs assume_role_arn"),
    ],
)
def test_half_given_credentials_are_refused(members: Mapping[str, str], said: str) -> None:
    """Looking elsewhere instead would use somebody else's rights."""
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(members, KIND.settings)


def test_the_example_decodes() -> None:
    """It stands on the page of the provider."""
    assert isinstance(msgspec.convert(KIND.example, KIND.settings), route53.Route53Settings)


def test_partitions_have_their_own_service() -> None:
    """Signed for another region, every request is refused."""
    assert route53._partition("eu-central-1").signing_region == "us-east-1"
    assert route53._partition("cn-north-1").endpoint.endswith(".cn")
    assert route53._partition("us-gov-east-1").signing_region == "us-gov-west-1"
