"""lexicon through the real dns-lexicon, by its PowerDNS module, whose server can be a fake of ours."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from scaivaultd_contrib_dns import lexicon

from scaivaultd.plugin import DnsProvider, PermanentError, ProviderAuthError, TransientError, ZoneNotFound
from scaivaultd.plugin.dns import Checkable, DnsProviderKind
from scaivaultd.plugin.testing import (
    ONE,
    THREE,
    TWO,
    DnsProviderContract,
    FaultKind,
    FixedSecrets,
    Rig,
    everything_about,
    open_provider,
)
from tests.fakes.http import FakeApi, Seen, problem

(KIND,) = lexicon.scaivaultd_dns_providers()
KEY = "key-of-powerdns"
ZONE = "sub.example.org"
NAME = f"_acme-challenge.www.{ZONE}"


class FakePowerDns(FakeApi):
    """As much of PowerDNS' API as the module uses; it has one zone, below a registered domain."""

    def __init__(self) -> None:
        super().__init__()
        self.sets: dict[str, list[str]] = {}

    async def answer(self, seen: Seen) -> web.StreamResponse:
        if seen.headers.get("x-api-key") != KEY:
            return problem(401, {"error": "Unauthorized"})
        if seen.path.rstrip(".") != f"/api/v1/servers/localhost/zones/{ZONE}":
            self.violation(f"another zone: {seen.path}")
            return problem(404, {"error": "Not Found"})
        if seen.method == "PATCH":
            for each in msgspec.json.decode(seen.body)["rrsets"]:
                self.sets[each["name"]] = [record["content"] for record in each["records"]]
                if self.on_txt is not None:
                    self.on_txt(each["name"].rstrip("."), tuple(self.sets[each["name"]]))
            return web.Response(status=204)
        sets = [
            {
                "name": name,
                "type": "TXT",
                "ttl": 60,
                "records": [{"content": value, "disabled": False} for value in values],
            }
            for name, values in self.sets.items()
        ]
        return problem(200, {"name": f"{ZONE}.", "kind": "Native", "rrsets": sets})


class LexiconRig:
    """PowerDNS behind dns-lexicon."""

    kind: DnsProviderKind = KIND
    zone = ZONE
    secrets: Mapping[str, str] = {"pdns/key": KEY}
    wrong_secrets: Mapping[str, str] | None = {"pdns/key": "wrong-key-of-powerdns"}

    def __init__(self, server: FakePowerDns) -> None:
        self.server = server

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "lexicon_provider": "powerdns",
            "zone": ZONE,
            "options": {"pdns_server": self.server.url},
            "option_paths": {"auth_token": "pdns/key"},
            "timeout": 20,
        }

    def opened(self, secrets: Mapping[str, str] | None = None, **more: Any) -> AbstractAsyncContextManager[DnsProvider]:
        return open_provider(self, secrets=FixedSecrets(self.secrets if secrets is None else secrets), **more)

    async def values(self, name: str) -> Sequence[str]:
        return [value.strip('"') for value in self.server.sets.get(f"{name}.", [])]

    async def put_foreign(self, name: str, value: str) -> None:
        self.server.sets.setdefault(f"{name}.", []).append(f'"{value}"')

    async def fail(self, fault: FaultKind, times: int) -> None:
        self._fail(fault, times, "")

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        self._fail(fault, times, "^PATCH ")

    def complaints(self) -> Sequence[str]:
        return self.server.violations

    def _fail(self, fault: FaultKind, times: int, where: str) -> None:
        if fault == "rate_limit":
            self.server.fail("status", times=times, where=where, status=429)
        elif fault == "server_error":
            self.server.fail("status", times=times, where=where)
        else:
            self.server.fail(fault, times=times, where=where)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever dns-lexicon keeps below the home directory goes there, and is looked at."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
async def rig() -> AsyncIterator[LexiconRig]:
    async with FakePowerDns() as server:
        yield LexiconRig(server)
        assert not server.violations


class TestLexiconContract(DnsProviderContract):
    """What can be asked of dns-lexicon: it reads, merges and writes, and most of its modules wait for ever."""

    cannot = frozenset({"two_writers", "odd_text", "zone_gone", "cancel", "hang"})

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        async with FakePowerDns() as server:
            yield LexiconRig(server)


async def test_the_configured_zone_is_written_and_nothing_is_looked_up(rig: LexiconRig, tmp_path: Path) -> None:
    """dns-lexicon's own guess would be the registered domain, after a download of the list of suffixes."""
    async with rig.opened() as provider:
        zone = await provider.find_zone(NAME)
        assert zone.name == ZONE
        await provider.add_txt(zone, NAME, [ONE, TWO], 60)
        await provider.remove_txt(zone, NAME, [ONE], None)
    assert await rig.values(NAME) == [TWO]
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))


async def test_without_a_zone_it_asks_for_one(rig: LexiconRig) -> None:
    """A wrong guess writes into somebody else's zone."""
    async with rig.opened(zone=None) as provider:
        with pytest.raises(ZoneNotFound, match="set `zone`"):
            await provider.find_zone(NAME)
        assert isinstance(provider, Checkable)
        with pytest.raises(PermanentError, match="set `zone`"):
            await provider.check()


async def test_an_unknown_provider_is_told(rig: LexiconRig) -> None:
    """With what to install, should it only lack its packages."""
    async with rig.opened(lexicon_provider="nosuch") as provider:
        assert isinstance(provider, Checkable)
        with pytest.raises(PermanentError, match="pip install"):
            await provider.check()


async def test_a_missing_dns_lexicon_says_what_to_install(rig: LexiconRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "lexicon.client", None)
    with pytest.raises(PermanentError, match=re.escape("pip install 'scaivaultd[lexicon]'")):
        async with rig.opened():
            pass


async def test_errors_hold_nothing_of_the_original(rig: LexiconRig) -> None:
    """Texts of `requests` hold URLs, and some services take their tokens there."""
    async with rig.opened({"pdns/key": "wrong-key"}) as provider:
        assert isinstance(provider, Checkable)
        with pytest.raises(ProviderAuthError, match="HTTPError, HTTP 401") as caught:
            await provider.check()
    told = everything_about(caught.value)
    assert rig.server.url not in told
    assert "wrong-key" not in told


async def test_a_call_that_hangs_is_given_up_and_holds_the_next_one_back(rig: LexiconRig) -> None:
    """It cannot be stopped; the next one must not run late, when nobody wants its value any more."""
    released = asyncio.Event()
    answer = rig.server.answer

    async def held_up(seen: Seen) -> web.StreamResponse:
        if seen.method == "PATCH":
            await released.wait()
        return await answer(seen)

    rig.server.answer = held_up  # type: ignore[method-assign]  # a server that hangs until the test lets it go on
    async with rig.opened(timeout=1, max_retries=0) as provider:
        zone = await provider.find_zone(NAME)
        for value in (ONE, TWO):
            with pytest.raises(TransientError, match="more than 1 seconds"):
                await provider.add_txt(zone, NAME, [value], 60)
        released.set()
        await provider.add_txt(zone, NAME, [THREE], 60)
    assert sorted(await rig.values(NAME)) == sorted([ONE, THREE])


async def test_a_call_that_is_broken_off_ends_at_once(rig: LexiconRig) -> None:
    """The thread goes on alone; the daemon does not wait for it."""
    rig.server.fail("hang", where="^PATCH")
    written = asyncio.Event()
    rig.server.on_txt = lambda name, values: written.set()
    async with rig.opened() as provider:
        call = asyncio.create_task(provider.add_txt(await provider.find_zone(NAME), NAME, [ONE], 60))
        await written.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_an_option_comes_from_one_place() -> None:
    """Which of the two would win is anybody's guess."""
    members = {"lexicon_provider": "gandi", "options": {"a": "1"}, "option_paths": {"a": "r"}}
    with pytest.raises(msgspec.ValidationError, match="in options and in option_paths: a"):
        msgspec.convert(members, KIND.settings)


def test_only_the_configuration_file_may_configure_it() -> None:
    """Some of dns-lexicon's modules write files."""
    assert KIND.configuration_file_only
    msgspec.convert(KIND.example, KIND.settings)
