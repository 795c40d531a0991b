"""The daily look at the CAs: what they say of themselves is kept up to date, and new terms are told of."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest

from scaivaultd.acme.wire import Directory
from scaivaultd.model.errors import CaUnavailable
from scaivaultd.services.account_care import DIRECTORIES_AT_ONCE
from tests.fakes.care import deactivate, update

ONE, TWO = "https://ca.test/terms/1", "https://ca.test/terms/2"
PLAIN = Directory(new_nonce="https://ca.test/n", new_account="https://ca.test/a", new_order="https://ca.test/o")


class Directories:
    """The CAs as others see them, with directories that a test may change or break, one for each address."""

    def __init__(self, cas: Any) -> None:
        self._cas = cas
        self.shown = msgspec.structs.replace(PLAIN, terms_of_service=ONE)
        self.broken: dict[str, Exception] = {}
        self.read: list[str] = []
        self.at_once = self.most_at_once = 0

    def client(self, directory_url: str, *rest: Any) -> Any:
        client = self._cas.client(directory_url, *rest)
        client.directory = lambda: self.directory(directory_url)
        return client

    async def check_directory(self, url: str) -> None:
        await self._cas.check_directory(url)

    async def directory(self, url: str) -> Directory:
        self.read.append(url)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        self.at_once -= 1
        if url in self.broken:
            raise self.broken[url]
        return self.shown


@pytest.fixture
def directories(world: Any) -> Directories:
    directories = Directories(world.cas)
    world.cas = directories
    world.begin()
    return directories


async def test_new_terms_are_told_once_and_never_agreed_to_in_silence(world: Any, directories: Directories) -> None:
    """Agreeing is an owner's word; a daemon has none to give."""
    account_id = await world.account()
    await world.care.look()
    assert (await world.shown_account(account_id)).terms_changed_to is None
    directories.shown = msgspec.structs.replace(directories.shown, terms_of_service=TWO)
    await world.care.look()
    directories.shown = msgspec.structs.replace(directories.shown, profiles={"new": "a profile"})
    world.clock.advance(86_400)
    await world.care.look()
    account = await world.shown_account(account_id)
    assert (account.terms_changed_to, account.ca.terms_of_service) == (TWO, ONE)
    assert account.ca.profiles == {"new": "a profile"}
    assert (await world.event_types()).count("account.terms_changed") == 1
    body = dict(await world.events())["account.terms_changed"]
    assert (body["terms_of_service_url"], body["previous_url"]) == (TWO, ONE)
    assert world.ca.asked("agree_to_terms") == []


async def test_agreed_terms_are_not_told_of_again(world: Any, directories: Directories) -> None:
    """The owner has spoken; the next change is news again."""
    account_id = await world.account()
    directories.shown = msgspec.structs.replace(directories.shown, terms_of_service=TWO)
    await world.care.look()
    await update(world, account_id, terms_of_service_agreed=True)
    await world.care.look()
    assert (await world.event_types()).count("account.terms_changed") == 1
    world.clock.advance(60)
    directories.shown = msgspec.structs.replace(directories.shown, terms_of_service=ONE)
    await world.care.look()
    assert (await world.event_types()).count("account.terms_changed") == 2


@pytest.mark.parametrize(("offered", "marked"), [(None, TWO), (ONE, None)])
async def test_terms_that_come_back_are_no_change_and_missing_ones_neither(
    world: Any, directories: Directories, offered: str | None, marked: str | None
) -> None:
    """A directory without terms for an hour is a mishap."""
    account_id = await world.account()
    directories.shown = msgspec.structs.replace(directories.shown, terms_of_service=TWO)
    await world.care.look()
    directories.shown = msgspec.structs.replace(directories.shown, terms_of_service=offered)
    await world.care.look()
    account = await world.shown_account(account_id)
    assert (account.terms_changed_to, account.ca.terms_of_service) == (marked, ONE)


async def test_what_the_ca_offers_now_is_what_the_account_shows(world: Any, directories: Directories) -> None:
    """Profiles come and go."""
    account_id = await world.account()
    directories.shown = msgspec.structs.replace(
        directories.shown, profiles={"new": "a profile"}, renewal_info="https://ca.test/ari", key_change="https://k"
    )
    await world.care.look()
    ca = (await world.shown_account(account_id)).ca
    assert (ca.profiles, ca.renewal_info, ca.key_change) == ({"new": "a profile"}, True, True)


async def test_a_ca_that_is_down_keeps_nobody_from_the_others(world: Any, directories: Directories) -> None:
    """It is looked at tomorrow."""
    await world.account(name="a", directory_url="https://a.test/directory")
    other = await world.account(name="b", directory_url="https://b.test/directory")
    directories.broken["https://a.test/directory"] = CaUnavailable("down")
    directories.shown = msgspec.structs.replace(directories.shown, terms_of_service=TWO)
    await world.care.look()
    assert (await world.shown_account(other)).terms_changed_to == TWO


async def test_each_ca_is_read_once_and_only_a_few_at_a_time(world: Any, directories: Directories) -> None:
    """A hundred accounts at one CA are one request."""
    for number in range(6):
        await world.account(name=f"n{number}", directory_url=f"https://ca{number}.test/directory")
    await world.account(name="again", directory_url="https://ca0.test/directory")
    await deactivate(world, await world.account(name="ended"), confirm="ended")
    directories.read.clear()
    await world.care.look()
    assert sorted(directories.read) == [f"https://ca{number}.test/directory" for number in range(6)]
    assert directories.most_at_once == DIRECTORIES_AT_ONCE


async def test_it_looks_every_day_whatever_happened_the_day_before(world: Any, directories: Directories) -> None:
    """A full disk at that moment must not end the room, and the daemon with it."""
    await world.account()
    directories.read.clear()
    world.store.is_down = True
    room = asyncio.ensure_future(world.care.run())
    async with asyncio.timeout(10):
        while not world.said("account.not_looked_after"):  # noqa: ASYNC110 - the room gets there by itself
            await asyncio.sleep(0)
        world.store.is_down = False
        days: list[float] = []
        while len(days) < 3:
            if len(directories.read) > len(days):
                days.append(world.clock.monotonic() / 86400)
            await asyncio.sleep(0)
    room.cancel()
    with pytest.raises(asyncio.CancelledError):
        await room
    assert all(0.9 < later - earlier < 1.2 for earlier, later in itertools.pairwise(days))
