"""acme-dns: two values that roll, no reading, no deleting, and still no value lost that is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from scaivaultd_contrib_dns import acme_dns

from scaivaultd.plugin import PermanentError, ProviderAuthError, Zone, ZoneNotFound
from scaivaultd.plugin.dns import DnsProviderKind
from scaivaultd.plugin.testing import (
    ONE,
    THREE,
    TWO,
    Bench,
    DnsProviderContract,
    FaultKind,
    FixedSecrets,
    JumpingClock,
    Rig,
    everything_about,
    make_context,
    open_provider,
)
from tests.fakes.acme_dns import FakeAcmeDns

(KIND,) = acme_dns.scaivaultd_dns_providers()
FULL = "sub-one.auth.example.org"
PASSWORD = "p4ssw0rd-of-acme-dns"


def account(subdomain: str = "sub-one", password: str = PASSWORD) -> dict[str, Any]:
    return {
        "username": "user-of-acme-dns",
        "password": password,
        "subdomain": subdomain,
        "fulldomain": f"{subdomain}.auth.example.org",
        "allowfrom": [],
    }


def encoded(found: Any) -> str:
    return msgspec.json.encode(found).decode()


class AcmeDnsRig:
    """One account."""

    kind: DnsProviderKind = KIND
    zone = "auth.example.org"
    secrets: Mapping[str, str] = {"accounts": encoded(account())}
    wrong_secrets: Mapping[str, str] | None = {"accounts": encoded(account(password="wrong-password"))}

    def __init__(self, server: FakeAcmeDns, clock: JumpingClock) -> None:
        self.server = server
        self.clock = clock
        server.register("sub-one", "user-of-acme-dns", PASSWORD)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"api_base": self.server.url, "account_path": "accounts"}

    def opened(self, secrets: Mapping[str, str] | None = None, **more: Any) -> Any:
        reader = FixedSecrets(self.secrets if secrets is None else secrets)
        return open_provider(self, secrets=reader, clock=self.clock, **more)

    async def values(self, name: str) -> Sequence[str]:
        # DNS knows no record twice, whatever the server's two places hold.
        return list(dict.fromkeys(self.server.values(name)))

    async def put_foreign(self, name: str, value: str) -> None:
        raise NotImplementedError

    async def fail(self, fault: FaultKind, times: int) -> None:
        await self.fail_writes(fault, times)

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        """Nothing but writes."""
        if fault == "rate_limit":
            self.server.fail("status", times=times, status=429)
        elif fault == "server_error":
            self.server.fail("status", times=times, status=503)
        else:
            self.server.fail(fault, times=times)

    def complaints(self) -> Sequence[str]:
        return self.server.violations


@pytest.fixture
async def rig() -> AsyncIterator[AcmeDnsRig]:
    clock = JumpingClock()
    async with FakeAcmeDns(clock.monotonic) as server:
        yield AcmeDnsRig(server, clock)
        assert not server.violations


class TestAcmeDnsContract(DnsProviderContract):
    """What can be asked of a service that neither reads nor deletes, and has one name for each account."""

    cannot = frozenset({"remove", "names", "many_values", "foreign", "odd_text", "two_writers"})

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        clock = JumpingClock()
        async with FakeAcmeDns(clock.monotonic) as server:
            yield AcmeDnsRig(server, clock)

    @pytest.fixture
    async def bench(self, rig: AcmeDnsRig, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bench]:
        """The server dates values by the clock that the provider waits by."""
        bench = Bench(rig)
        bench.clock = rig.clock
        yield bench
        bench.keeps_secrets("\n".join(bench.log.lines), "a log")
        assert not rig.complaints()

    def name(self, rig: Rig, label: str = "www") -> str:
        """The server gives the names."""
        return FULL


ZONE = Zone(name="auth.example.org", id="sub-one")


async def test_both_values_of_a_name_and_its_wildcard_stand(rig: AcmeDnsRig) -> None:
    """One order needs both at once, in one call or in two."""
    async with rig.opened() as provider:
        await provider.add_txt(ZONE, FULL, [ONE, TWO], 60)
        assert sorted(rig.server.values(FULL)) == sorted([ONE, TWO])


@pytest.mark.parametrize("removed", [ONE, TWO])
async def test_a_new_value_takes_the_place_of_one_that_is_done(rig: AcmeDnsRig, removed: str) -> None:
    """The server gives up the older value, which may be the one that is still needed."""
    async with rig.opened() as provider:
        await provider.add_txt(ZONE, FULL, [ONE], 60)
        await provider.add_txt(ZONE, FULL, [TWO], 60)
        await provider.remove_txt(ZONE, FULL, [removed], None)
        await provider.add_txt(ZONE, FULL, [THREE], 60)
    assert sorted(rig.server.values(FULL)) == sorted({ONE, TWO, THREE} - {removed})


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "hang"])
async def test_a_lost_answer_loses_no_value(rig: AcmeDnsRig, kind: Any) -> None:
    """Sending a value twice pushes the other one out; so both are sent again."""
    async with rig.opened(request_timeout=1) as provider:
        await provider.add_txt(ZONE, FULL, [ONE], 60)
        rig.server.fail(kind)
        await provider.add_txt(ZONE, FULL, [TWO], 60)
    assert sorted(rig.server.values(FULL)) == sorted([ONE, TWO])


async def test_adding_again_loses_no_value(rig: AcmeDnsRig) -> None:
    """The host repeats what it is not sure of."""
    async with rig.opened() as provider:
        await provider.add_txt(ZONE, FULL, [ONE], 60)
        await provider.add_txt(ZONE, FULL, [TWO], 60)
        for value in (TWO, ONE, ONE):
            await provider.add_txt(ZONE, FULL, [value], 60)
            assert sorted(rig.server.values(FULL)) == sorted([ONE, TWO])


async def test_only_a_known_fulldomain_is_ours(rig: AcmeDnsRig) -> None:
    """Without its CNAME a name is somebody else's; the text says which record is missing."""
    known = {"accounts": encoded({"example.net": account()})}
    async with rig.opened(known) as provider:
        assert await provider.find_zone(FULL) == ZONE
        with pytest.raises(ZoneNotFound, match=r"_acme-challenge.example.net. CNAME sub-one.auth.example.org."):
            await provider.find_zone("_acme-challenge.example.net")
        with pytest.raises(ZoneNotFound, match=r"none of 1 acme-dns accounts is for other\.example\.com"):
            await provider.find_zone("other.example.com")
    async with rig.opened() as provider:
        with pytest.raises(ZoneNotFound, match=r"if this account is for it.*CNAME sub-one"):
            await provider.find_zone("_acme-challenge.example.net")


async def test_an_account_may_come_in_parts(rig: AcmeDnsRig) -> None:
    """For those who keep user name and password as two secrets."""
    parts = {"username_path": "u", "password_path": "p", "subdomain": "sub-one", "fulldomain": f"{FULL}."}
    secrets = {"u": "user-of-acme-dns", "p": PASSWORD}
    config = {"api_base": rig.server.url, **parts}
    settings = msgspec.convert(config, KIND.settings)
    async with KIND.open(settings, make_context(FixedSecrets(secrets), clock=rig.clock)) as provider:
        await provider.add_txt(await provider.find_zone(FULL), FULL, [ONE], 60)
    assert rig.server.values(FULL) == [ONE]


@pytest.mark.parametrize(
    "members", [{}, {"username_path": "u"}, {"account_path": "a", "subdomain": "s"}, {"subdomain": "s"}]
)
def test_half_an_account_is_refused(members: Mapping[str, str]) -> None:
    """It is a mistake in the configuration, and told when it is made."""
    with pytest.raises(msgspec.ValidationError, match="account_path"):
        msgspec.convert({"api_base": "https://a.test", **members}, KIND.settings)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"fulldomain": "x", "password": 5}', "[" * 5000])
async def test_a_secret_that_is_no_account_is_told_without_showing_it(rig: AcmeDnsRig, text: str) -> None:
    """The text of a decoder can quote what it read."""
    async with rig.opened({"accounts": text}) as provider:
        with pytest.raises(PermanentError, match="accounts is neither"):
            await provider.find_zone(FULL)


async def test_a_refused_account_is_told_and_not_shown(rig: AcmeDnsRig) -> None:
    """Somebody must act; the headers hold the password."""
    async with rig.opened(rig.wrong_secrets) as provider:
        with pytest.raises(ProviderAuthError, match="forbidden") as caught:
            await provider.add_txt(ZONE, FULL, [ONE], 60)
    assert "wrong-password" not in everything_about(caught.value)


async def test_values_of_another_length_are_not_sent(rig: AcmeDnsRig) -> None:
    """The server takes 43 characters only."""
    async with rig.opened() as provider:
        with pytest.raises(PermanentError, match="43"):
            await provider.add_txt(ZONE, FULL, ["short"], 60)
        with pytest.raises(PermanentError, match="2 values, not 3"):
            await provider.add_txt(ZONE, FULL, [ONE, TWO, THREE], 60)
    assert not rig.server.seen
