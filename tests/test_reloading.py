"""Reading the configuration again: all of it or nothing, and what came of it is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from scaivaultd.model.errors import StartupError
from scaivaultd.reloading import Reloading, changed_keys
from scaivaultd.settings import AcmeSettings, LogSettings, PreflightSettings, Settings
from scaivaultd.settings_layers import Mistake, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.api.operation_messages import ReloadReply

BEFORE = Settings(state_dir=Path("/state"))


class House:
    """A configuration that changes, and what is applied of it."""

    def __init__(self) -> None:
        self.now: Settings | StartupError = BEFORE
        self.applied: list[str] = []
        self.told: list[ReloadReply | None] = []
        self.reloading = Reloading(BEFORE, read=self.read, log=structlog.get_logger())
        self.reloading.begun.subscribe(self.told.append)
        self.reloading.ended.subscribe(self.told.append)

    def read(self) -> Settings:
        if isinstance(self.now, StartupError):
            raise self.now
        return self.now

    def notes(self, name: str) -> Callable[[Settings], Callable[[], None]]:
        return lambda _: lambda: self.applied.append(name)

    def says(self, **changes: object) -> None:
        self.now = msgspec.structs.replace(BEFORE, **changes)


def test_what_is_followed_is_applied_and_the_rest_waits_for_a_restart() -> None:
    """And it goes on waiting, at every reload, until there is one."""
    house = House()
    house.reloading.follow("log.level", prepare=house.notes("level"))
    house.reloading.follow("preflight.caa", prepare=house.notes("preflight"))
    house.says(log=LogSettings(level="debug", format="json"), state_dir=Path("/other"))
    reply = house.reloading.reload()
    assert (reply.ok, reply.changed, reply.needs_restart) == (True, ["log.level"], ["log.format", "state_dir"])
    assert house.applied == ["level"]
    reply = house.reloading.reload()
    assert (reply.changed, reply.needs_restart) == ([], ["log.format", "state_dir"])
    assert house.applied == ["level"]
    house.now = BEFORE
    reply = house.reloading.reload()
    assert (reply.changed, reply.needs_restart) == (["log.level"], [])


def test_a_reload_without_a_change_says_so_and_reads_files_again() -> None:
    """A renewed TLS file has no new name."""
    house = House()
    house.reloading.follow("access.policy_files", prepare=house.notes("policies"), is_always=True)
    house.reloading.follow("log.level", prepare=house.notes("level"))
    reply = house.reloading.reload()
    assert (reply.ok, reply.changed, reply.needs_restart, reply.mistakes) == (True, [], [], [])
    assert house.applied == ["policies"]


async def test_a_configuration_with_mistakes_changes_nothing_and_is_told_until_it_is_mended() -> None:
    """The daemon runs on with the one before; whoever asks for its health sees why."""
    house = House()
    house.reloading.follow("log.level", prepare=house.notes("level"))
    mistakes = [Mistake(file=Path("/c"), line=line, key="log.level", message="x") for line in (3, 4)]
    house.now = SettingsError(mistakes)
    reply = house.reloading.reload()
    assert (reply.ok, reply.mistakes) == (False, ["/c:3: log.level: x", "/c:4: log.level: x"])
    health = await house.reloading.health()
    assert (health.status, health.detail) == (
        "degraded",
        "not reloaded, the one before is in force: /c:3: log.level: x (and 1 more)",
    )
    assert house.told == [None, reply]
    house.says(log=LogSettings(level="debug"))
    assert house.reloading.reload().changed == ["log.level"]
    assert (await house.reloading.health()).status == "ok"
    assert house.reloading.trouble == ""


def test_what_cannot_be_prepared_keeps_all_others_from_being_applied() -> None:
    """Half of a configuration is one that nobody has written."""
    house = House()
    house.reloading.follow("log.level", prepare=house.notes("level"))

    def refuse(_: Settings) -> Callable[[], None]:
        raise StartupError("one\ntwo")

    house.reloading.follow("preflight.caa", prepare=refuse)
    house.says(log=LogSettings(level="debug"), preflight=PreflightSettings(caa="block"))
    assert house.reloading.reload().mistakes == ["one", "two"]
    assert house.applied == []


def test_changes_are_told_by_key() -> None:
    """Whoever reads the reply looks for the key in the file."""
    after = msgspec.structs.replace(BEFORE, acme=AcmeSettings(orders_per_ca=3), solvers={"x": {}})
    assert changed_keys(BEFORE, after) == {"acme.orders_per_ca", "solvers"}
