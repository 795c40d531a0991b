"""A conformance kit for DNS providers: derive a test class, supply a rig, run it with pytest.

    class TestAcme(DnsProviderContract):
        @pytest.fixture
        async def rig(self) -> AsyncIterator[Rig]:
            async with FakeAcme() as server:
                yield AcmeRig(server)

Needs pytest and pytest-asyncio (`asyncio_mode = "auto"`). Nothing of it is used by the daemon. What a service cannot
do is declared in `cannot`; the tests that need it are skipped and say so.

The host in small that it runs providers in is `scaivaultd.plugin.bench`, of use in other tests of plugins, too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import pytest

from scaivaultd.plugin.bench import (
    AimsAtWrites,
    FaultKind,
    FixedSecrets,
    Host,
    JumpingClock,
    RecordingLog,
    Rig,
    RotatedSecrets,
    everything_about,
    journalled,
    make_context,
    open_provider,
    traces,
)
from scaivaultd.plugin.dns import (
    Checkable,
    ProviderSettings,
    SignalsLive,
    Zone,
)
from scaivaultd.plugin.errors import ProviderAuthError, ProviderError, TransientError, ZoneNotFound
from scaivaultd.plugin.secrets import SecretMissing, SecretReader

__all__ = [
    "FEATURES",
    "AimsAtWrites",
    "Bench",
    "DnsProviderContract",
    "FaultKind",
    "FixedSecrets",
    "Host",
    "JumpingClock",
    "RecordingLog",
    "Rig",
    "RotatedSecrets",
    "everything_about",
    "journalled",
    "make_context",
    "open_provider",
    "traces",
    "txt_value",
]

FEATURES: Mapping[str, str] = {
    "remove": "taking one value away",
    "names": "more than one record name",
    "many_values": "more than two values at one name (then `Capabilities.max_values` says how many)",
    "same_value": "telling whether a value is there already",
    "foreign": "values of other programs beside ours",
    "odd_text": "values that are long, or hold quotes and backslashes",
    "zones": "saying which names are in its zones (then `Capabilities.any_zone` is set)",
    "zone_gone": "answering for a zone that is not there any more",
    "two_writers": "two programs that write one name at the same time",
    "cancel": "breaking a call off",
    "rate_limit": "asking to slow down",
    "server_error": "failing with an error of the server",
    "drop_before": "losing a connection before a request is carried out",
    "drop_after": "losing a connection after a request was carried out",
    "hang": "never answering",
}
"""What `DnsProviderContract.cannot` may name, and what it stands for."""

FAULTS: tuple[FaultKind, ...] = ("rate_limit", "server_error", "drop_before", "drop_after", "hang")
PLAIN_FOREIGN = "v=spf1 include:_spf.example.net ~all"
LONG_FOREIGN = "".join(f"{number:04d}" for number in range(80))
QUOTED_FOREIGN = 'say "hello", c:\\new and ;semi'
RETRIES = 3
PATIENT_SECONDS = 20.0
HASTY_SECONDS = 1.0
FOR_EVER = 10_000


def txt_value(number: int) -> str:
    """A value as a CA makes it: 43 characters of base64url (RFC 8555 section 8.4)."""
    return base64.urlsafe_b64encode(hashlib.sha256(str(number).encode()).digest()).decode().rstrip("=")


ONE, TWO, THREE = txt_value(1), txt_value(2), txt_value(3)


class Bench:
    """A rig, and what the providers opened on it logged and waited for."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.log = RecordingLog()
        self.clock = JumpingClock()

    @asynccontextmanager
    async def host(self, secrets: SecretReader | None = None, **settings: Any) -> AsyncIterator[Host]:
        """Open a provider, and a host that calls it."""
        limits = {"request_timeout": PATIENT_SECONDS, "max_retries": RETRIES, **settings}
        async with open_provider(self.rig, secrets=secrets, clock=self.clock, log=self.log, **limits) as provider:
            yield Host(provider, self.rig.kind.capabilities)

    async def expect(self, name: str, *values: str) -> None:
        """The server has these values at the name, each once, and no others."""
        found = sorted(await self.rig.values(name))
        assert found == sorted(values), f"{name} holds {found}, not {sorted(values)}"

    def keeps_secrets(self, text: str, where: str) -> None:
        """No secret, right or wrong, stands in the text."""
        known = [self.rig.secrets, self.rig.wrong_secrets or {}]
        # The text itself is not shown: the report would repeat the secret.
        assert not any(trace in text for each in known for trace in traces(each)), f"a secret stands in {where}"

    async def fail(self, fault: FaultKind, times: int, *, writes: bool = False) -> None:
        """Let requests fail; `writes`: those that change something, which not every rig can tell."""
        if not writes:
            await self.rig.fail(fault, times)
        elif isinstance(self.rig, AimsAtWrites):
            await self.rig.fail_writes(fault, times)
        else:
            pytest.skip("the rig has no `fail_writes`: faults of writing requests are not tested")


class DnsProviderContract:
    """What every DNS provider has to do. Override `rig`; declare in `cannot` what the service is not able to."""

    cannot: ClassVar[frozenset[str]] = frozenset()
    """Names from `FEATURES`. Each skips tests, so each wants a reason in the documentation of the provider."""

    @pytest.fixture
    def rig(self) -> Rig:
        """The server under test, fresh for every test; override it, as an asynchronous generator or not."""
        raise NotImplementedError("override the fixture `rig`")

    @pytest.fixture
    async def bench(self, rig: Rig, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bench]:
        """The rig with everything around it; judges logs and requests when the test is over."""
        caplog.set_level(logging.DEBUG)
        bench = Bench(rig)
        yield bench
        formatter = logging.Formatter()
        lines = [*bench.log.lines, *(formatter.format(record) for record in caplog.get_records("call"))]
        bench.keeps_secrets("\n".join(lines), "a log")
        complaints = list(rig.complaints())
        assert not complaints, f"the server objects: {complaints}"

    @pytest.fixture
    async def host(self, bench: Bench) -> AsyncIterator[Host]:
        """A provider that is open, and a host that calls it."""
        async with bench.host() as host:
            yield host

    def name(self, rig: Rig, label: str = "www") -> str:
        """The record name that stands for `label`; override it where names are given by the service."""
        return f"_acme-challenge.{label}.{rig.zone}"

    def needs(self, *features: str) -> None:
        """Skip the test unless the service can do all of these."""
        for feature in features:
            if feature in self.cannot:
                pytest.skip(f"{type(self).__name__} cannot {feature!r}: {FEATURES[feature]}")

    # The kind

    def test_exemptions_are_known_and_declared(self, rig: Rig) -> None:
        """A misspelt exemption exempts nothing; the host has to know of a limit to keep to it."""
        assert self.cannot <= set(FEATURES), f"unknown: {sorted(self.cannot - set(FEATURES))}"
        assert ("many_values" in self.cannot) <= (rig.kind.capabilities.max_values is not None)
        assert ("zones" in self.cannot) <= rig.kind.capabilities.any_zone

    def test_the_example_decodes_and_settings_refuse_what_they_do_not_know(self, rig: Rig) -> None:
        """The example is copied by people; a misspelt setting must not be ignored in silence."""
        assert issubclass(rig.kind.settings, ProviderSettings)
        msgspec.convert(rig.kind.example, rig.kind.settings)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({**rig.kind.example, "no_such_setting": 1}, rig.kind.settings)

    # Zones

    async def test_the_zone_of_a_deep_name_is_the_longest_suffix(self, rig: Rig, bench: Bench, host: Host) -> None:
        """Nobody but the service knows where its zones begin."""
        self.needs("names")
        self._zones_are_told(rig)
        for name in (self.name(rig), self.name(rig, "a.b.c.d"), rig.zone):
            zone = await host.zone(name)
            assert zone.name == rig.zone, f"{name} is said to be in {zone.name}, not in {rig.zone}"

    async def test_a_name_without_a_zone_is_refused(self, rig: Rig, bench: Bench, host: Host) -> None:
        """The host asks each provider; one that takes what it cannot write hides the one that can."""
        self._zones_are_told(rig)
        with pytest.raises(ZoneNotFound) as caught:
            await host.zone("_acme-challenge.www.zone-of-nobody.invalid")
        bench.keeps_secrets(everything_about(caught.value), "an exception")

    async def test_a_name_that_only_ends_like_the_zone_is_not_in_it(self, rig: Rig, bench: Bench, host: Host) -> None:
        """`notexample.org` is no part of `example.org`: names are compared by labels."""
        self._zones_are_told(rig)
        try:
            zone = await host.zone(f"_acme-challenge.not{rig.zone}")
        except ZoneNotFound:
            return
        # The parent of the zone may be there as well, and that is right.
        assert zone.name != rig.zone

    def _zones_are_told(self, rig: Rig) -> None:
        self.needs("zones")
        if rig.kind.capabilities.any_zone:
            pytest.skip("the provider takes every name (`any_zone`)")

    # Adding

    async def test_adding_twice_leaves_one_value(self, rig: Rig, bench: Bench, host: Host) -> None:
        """A retry after a lost answer, or a restart, adds what is there already."""
        self.needs("same_value")
        name = self.name(rig)
        await host.add(name, ONE)
        await host.add(name, ONE)
        await bench.expect(name, ONE)

    async def test_two_values_stand_under_one_name(self, rig: Rig, bench: Bench, host: Host) -> None:
        """A wildcard and its apex share a name; losing one fails both."""
        name = self.name(rig)
        await host.add(name, ONE)
        await host.add(name, TWO)
        await bench.expect(name, ONE, TWO)

    async def test_values_of_one_call_are_all_written(self, rig: Rig, bench: Bench, host: Host) -> None:
        """The host batches what waits for the same name."""
        name = self.name(rig)
        values = (ONE, TWO) if "many_values" in self.cannot else (ONE, TWO, THREE)
        await host.add(name, *values)
        await bench.expect(name, *values)

    async def test_a_call_with_old_and_new_values_adds_the_new_ones(self, rig: Rig, bench: Bench, host: Host) -> None:
        """One that is there must not stand in the way of one that is not."""
        self.needs("same_value")
        name = self.name(rig)
        await host.add(name, ONE)
        await host.add(name, ONE, TWO)
        await bench.expect(name, ONE, TWO)

    async def test_the_zones_own_name_can_be_written(self, rig: Rig, bench: Bench, host: Host) -> None:
        """A CNAME may lead to the top of a zone; services write that name in ways of their own."""
        self.needs("names", "remove")
        await host.add(rig.zone, ONE)
        await bench.expect(rig.zone, ONE)
        await host.remove(rig.zone, ONE)
        await bench.expect(rig.zone)

    async def test_neighbouring_names_are_left_alone(self, rig: Rig, bench: Bench, host: Host) -> None:
        """Services that look for names by prefix or suffix find more than was asked for."""
        self.needs("names", "remove", "foreign")
        name = self.name(rig)
        neighbours = [f"x{name}", f"sub.{name}", f"_acme-challenge.{name}"]
        for each in neighbours:
            await rig.put_foreign(each, ONE)
        await host.add(name, ONE)
        await host.remove(name, ONE)
        await bench.expect(name)
        for each in neighbours:
            await bench.expect(each, ONE)

    # Removing

    async def test_removing_one_of_two_keeps_the_other(self, rig: Rig, bench: Bench, host: Host) -> None:
        """The other may belong to an order that the CA is just looking at."""
        self.needs("remove")
        name = self.name(rig)
        first = await host.add(name, ONE)
        await host.add(name, TWO)
        await host.remove(name, ONE, handle=first)
        await bench.expect(name, TWO)

    async def test_removing_needs_no_handle(self, rig: Rig, bench: Bench, host: Host) -> None:
        """After a crash in the middle of `add_txt` there is none."""
        self.needs("remove")
        name = self.name(rig)
        await host.add(name, ONE, TWO)
        await host.remove(name, ONE)
        await bench.expect(name, TWO)
        await host.remove(name, TWO)
        await bench.expect(name)

    async def test_another_instance_removes_by_the_handle(self, rig: Rig, bench: Bench) -> None:
        """After a restart the handle comes from the journal, and all that was in memory is gone."""
        self.needs("remove")
        name = self.name(rig)
        async with bench.host() as before:
            handle = await before.add(name, ONE, TWO)
        async with bench.host() as after:
            await after.remove(name, ONE, TWO, handle=handle)
        await bench.expect(name)

    async def test_a_stale_handle_removes_nothing_else(self, rig: Rig, bench: Bench, host: Host) -> None:
        """Somebody else deleted our value; whatever the handle names now is not ours to judge by."""
        self.needs("remove")
        name = self.name(rig)
        handle = await host.add(name, ONE)
        await host.remove(name, ONE)
        await host.add(name, TWO)
        await host.remove(name, ONE, handle=handle)
        await bench.expect(name, TWO)

    async def test_removing_what_is_not_there_is_no_error(self, rig: Rig, bench: Bench, host: Host) -> None:
        """Clean-up is repeated until it succeeds: it must be able to."""
        self.needs("remove")
        name = self.name(rig)
        await host.remove(name, ONE)
        handle = await host.add(name, TWO)
        await host.remove(name, ONE)
        await bench.expect(name, TWO)
        await host.remove(name, TWO, handle=handle)
        await host.remove(name, TWO, handle=handle)
        await bench.expect(name)

    async def test_removing_from_a_zone_that_is_gone_is_no_error(self, rig: Rig, bench: Bench, host: Host) -> None:
        """A deleted zone took our value with it; the journal must come to an end."""
        self.needs("remove", "zone_gone")
        gone = _gone(await host.zone(self.name(rig)))
        await host.provider.remove_txt(gone, f"_acme-challenge.www.{gone.name}", [ONE], None)

    # Other programs' values

    @pytest.mark.parametrize("foreign", [PLAIN_FOREIGN, LONG_FOREIGN, QUOTED_FOREIGN], ids=["plain", "long", "quoted"])
    async def test_foreign_values_are_kept(self, rig: Rig, bench: Bench, host: Host, foreign: str) -> None:
        """Other programs write there too; what they wrote is written back as it was."""
        self.needs("foreign", "remove")
        if foreign != PLAIN_FOREIGN:
            self.needs("odd_text")
        name = self.name(rig)
        await rig.put_foreign(name, foreign)
        await host.add(name, ONE, TWO)
        await bench.expect(name, foreign, ONE, TWO)
        await host.remove(name, ONE)
        await bench.expect(name, foreign, TWO)
        await host.remove(name, TWO)
        await bench.expect(name, foreign)

    # At the same time

    async def test_names_are_written_side_by_side(self, rig: Rig, bench: Bench, host: Host) -> None:
        """Many orders run at once; calls overlap for different names, and for the same name wait their turn."""
        self.needs("names", "many_values", "remove")
        names = [self.name(rig, f"host{number}") for number in range(5)]
        values = [txt_value(number) for number in range(10)]
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                for value in values:
                    tasks.create_task(host.add(name, value))
        for name in names:
            await bench.expect(name, *values)
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                for value in values[1:]:
                    tasks.create_task(host.remove(name, value))
        for name in names:
            await bench.expect(name, values[0])

    @pytest.mark.parametrize("begin", ["empty", "foreign"])
    async def test_two_writers_lose_nothing(self, rig: Rig, bench: Bench, begin: str) -> None:
        """Two daemons, or another program, may write a name between our reading and our writing."""
        self.needs("two_writers", *(["foreign", "names"] if begin == "foreign" else []))
        labels = ["www"] if "names" in self.cannot else ["a", "b", "c", "d", "e"]
        async with bench.host() as one, bench.host() as other:
            for name in [self.name(rig, label) for label in labels]:
                kept = [PLAIN_FOREIGN] if begin == "foreign" else []
                for value in kept:
                    await rig.put_foreign(name, value)
                await _together(one.add(name, ONE), other.add(name, TWO))
                await bench.expect(name, *kept, ONE, TWO)

    async def test_one_adds_while_another_removes(self, rig: Rig, bench: Bench) -> None:
        """The end of one order and the start of another meet at the same name."""
        self.needs("two_writers", "remove", "names")
        async with bench.host() as one, bench.host() as other:
            for name in [self.name(rig, label) for label in ("a", "b", "c", "d", "e")]:
                await one.add(name, ONE)
                await _together(one.remove(name, ONE), other.add(name, TWO))
                await bench.expect(name, TWO)

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 21, 34, 55, 89])
    async def test_a_call_that_is_broken_off_leaves_what_can_be_cleaned_up(
        self, rig: Rig, bench: Bench, host: Host, turns: int
    ) -> None:
        """The host cancels at its deadline and when it stops; the journal then removes the values."""
        self.needs("cancel", "remove")
        name = self.name(rig)
        kept = [] if "foreign" in self.cannot else [PLAIN_FOREIGN]
        for value in kept:
            await rig.put_foreign(name, value)
        await host.zone(name)
        adding = asyncio.create_task(host.add(name, ONE, TWO))
        for _ in range(turns):
            await asyncio.sleep(0)
        await _broken_off(adding)
        await self._cleaned_up(bench, host, name, kept)

    async def test_a_call_that_is_broken_off_while_it_waits_ends_at_once(self, rig: Rig, bench: Bench) -> None:
        """A service that hangs must not keep the daemon from stopping."""
        self.needs("cancel", "hang", "remove")
        name = self.name(rig)
        async with bench.host() as host:
            await host.zone(name)
            await bench.fail("hang", 1)
            adding = asyncio.create_task(host.add(name, ONE))
            for _ in range(200):
                await asyncio.sleep(0)
            await _broken_off(adding)
            await self._cleaned_up(bench, host, name, [])

    async def _cleaned_up(self, bench: Bench, host: Host, name: str, kept: list[str]) -> None:
        # The service may still be busy with the request whose answer nobody awaits: the host, too, removes
        # again while it sees its value.
        for _ in range(3):
            await host.remove(name, ONE, TWO)
            if sorted(await bench.rig.values(name)) == kept:
                break
        await bench.expect(name, *kept)

    # Credentials

    async def test_wrong_credentials_are_told_as_such(self, rig: Rig, bench: Bench) -> None:
        """Somebody must act: trying again for a day does not help. And no text may hold the credentials."""
        wrong = _wrong(rig)
        with pytest.raises(ProviderAuthError) as caught:
            async with bench.host(FixedSecrets(wrong)) as host:
                await host.add(self.name(rig), ONE)
        bench.keeps_secrets(everything_about(caught.value), "an exception")
        await bench.expect(self.name(rig))

    async def test_rotated_credentials_are_read_anew(self, rig: Rig, bench: Bench) -> None:
        """A refused secret may be an old one: forget it, read it again, and go on."""
        async with bench.host(RotatedSecrets(_wrong(rig), rig.secrets)) as host:
            await host.add(self.name(rig), ONE)
        await bench.expect(self.name(rig), ONE)

    async def test_a_missing_secret_is_told_by_its_reference(self, rig: Rig, bench: Bench) -> None:
        """The text names what to put where."""
        _wrong(rig)
        with pytest.raises((SecretMissing, ProviderError)) as caught:
            async with bench.host(FixedSecrets({})) as host:
                await host.add(self.name(rig), ONE)
        assert any(reference in str(caught.value) for reference in rig.secrets)

    async def test_check_tells_right_from_wrong_credentials(self, rig: Rig, bench: Bench, host: Host) -> None:
        """`check` is asked when a provider is configured, before anything depends on it."""
        if not isinstance(host.provider, Checkable):
            pytest.skip("the provider has no `check`")
        await host.provider.check()
        if rig.wrong_secrets is None:
            return
        with pytest.raises(ProviderAuthError) as caught:
            async with bench.host(FixedSecrets(rig.wrong_secrets)) as wrong:
                assert isinstance(wrong.provider, Checkable)
                await wrong.provider.check()
        bench.keeps_secrets(everything_about(caught.value), "an exception")

    # A service that fails

    @pytest.mark.parametrize("writes", [False, True], ids=["any", "writes"])
    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_passing_fault_while_adding_is_overcome(
        self, rig: Rig, bench: Bench, fault: FaultKind, writes: bool
    ) -> None:
        """One bad answer in a day must not fail an order, and a lost one must not write a value twice."""
        self.needs(fault)
        name = self.name(rig)
        kept = [] if self.cannot & {"foreign", "names"} else [PLAIN_FOREIGN]
        for value in kept:
            await rig.put_foreign(name, value)
        async with bench.host(request_timeout=_limit(fault)) as host:
            await host.zone(name)
            await bench.fail(fault, 1, writes=writes)
            await host.add(name, ONE)
        await bench.expect(name, *kept, ONE)

    @pytest.mark.parametrize("writes", [False, True], ids=["any", "writes"])
    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_passing_fault_while_removing_is_overcome(
        self, rig: Rig, bench: Bench, fault: FaultKind, writes: bool
    ) -> None:
        """What was removed although the answer was lost is gone, not an error."""
        self.needs(fault, "remove")
        name = self.name(rig)
        async with bench.host(request_timeout=_limit(fault)) as host:
            handle = await host.add(name, ONE)
            await host.add(name, TWO)
            await bench.fail(fault, 1, writes=writes)
            await host.remove(name, ONE, handle=handle)
        await bench.expect(name, TWO)

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_passing_fault_while_finding_the_zone_is_overcome(
        self, rig: Rig, bench: Bench, fault: FaultKind
    ) -> None:
        """A zone that cannot be looked up now is not a zone that does not exist."""
        self.needs(fault)
        async with bench.host(request_timeout=_limit(fault)) as host:
            await bench.fail(fault, 1)
            zone = await host.zone(self.name(rig))
        assert rig.kind.capabilities.any_zone or zone.name == rig.zone

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_lasting_fault_is_told_as_one_that_may_pass(self, rig: Rig, bench: Bench, fault: FaultKind) -> None:
        """The host decides how long to go on; a provider that tries for ever holds up all others."""
        self.needs(fault)
        name = self.name(rig)
        # One try where each takes real time.
        retries = 0 if fault == "hang" else RETRIES
        async with bench.host(request_timeout=_limit(fault), max_retries=retries) as host:
            await host.zone(name)
            pauses = len(bench.clock.pauses)
            await bench.fail(fault, FOR_EVER)
            with pytest.raises(TransientError) as caught:
                async with asyncio.timeout(PATIENT_SECONDS):
                    await host.add(name, ONE)
        bench.keeps_secrets(everything_about(caught.value), "an exception")
        # Twice as many as there are retries: a provider may also pace itself.
        assert len(bench.clock.pauses) - pauses <= 2 * (retries + 1), "it retries more often than max_retries says"

    async def test_waiting_for_the_service_ends(self, rig: Rig, bench: Bench, host: Host) -> None:
        """`wait_live` of a value that was written long ago returns, also by a handle from the journal."""
        if not isinstance(host.provider, SignalsLive):
            pytest.skip("the provider has no `wait_live`")
        handle = await host.add(self.name(rig), ONE)
        async with asyncio.timeout(PATIENT_SECONDS):
            await host.provider.wait_live(handle)
        async with bench.host() as after, asyncio.timeout(PATIENT_SECONDS):
            assert isinstance(after.provider, SignalsLive)
            await after.provider.wait_live(handle)


def _wrong(rig: Rig) -> Mapping[str, str]:
    if rig.wrong_secrets is None:
        pytest.skip("the rig has no credentials")
    return rig.wrong_secrets


def _limit(fault: FaultKind) -> float:
    return HASTY_SECONDS if fault == "hang" else PATIENT_SECONDS


def _gone(zone: Zone) -> Zone:
    """A zone like this one that is not there: another name, and an id that looks right."""
    name = f"gone-{zone.name}"
    if zone.name in zone.id:
        return Zone(name=name, id=zone.id.replace(zone.name, name))
    return Zone(name=name, id=zone.id[:-1] + ("1" if zone.id.endswith("0") else "0") if zone.id else "")


async def _together(*calls: Any) -> None:
    async with asyncio.TaskGroup() as tasks:
        for call in calls:
            tasks.create_task(call)


async def _broken_off(task: asyncio.Task[Any]) -> None:
    """Cancel a call and see it end so."""
    if not task.cancel():
        return
    await asyncio.wait({task}, timeout=HASTY_SECONDS * 5)
    assert task.done(), "the call goes on although it was cancelled"
    assert task.cancelled(), "the call swallowed its cancellation"
